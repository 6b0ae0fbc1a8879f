"""Files that break decoders, rotated photos and decompression bombs: each is prepared correctly or reported."""

import csv
import shutil
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image, ImageOps

from pspnet.dataset.store.pixels import decode_image
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.raw.images import read_image
from tests.command import PSPNET
from tests.parameters import ROOT
from tests.raw.rawdata import encoded, noise, shared_data, write

MOST_MEMORY = 10**9
MASKED = ("train", "val", "test")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """All awkward files as images without masks, plus three intact pairs."""
    for number, name in enumerate(MASKED):
        write(tmp_path / f"data/raw/images/{name}.png", encoded(noise(32, 32, number)))
        write(tmp_path / f"data/raw/masks/{name}.png", encoded(np.eye(32, dtype=np.uint8)))
    write(tmp_path / "data/raw/splits.csv", "id,split\n" + "".join(f"{name},{name}\n" for name in MASKED))
    for path in sorted(shared_data("awkward").rglob("*")):
        if path.is_file():
            shutil.copyfile(path, tmp_path / f"data/raw/images/{path.stem}_{path.suffix[1:]}{path.suffix}")
    params = (ROOT / "params.yaml").read_text()
    changes = {
        "  classes: {} ": "  classes: {back: 0, front: 1} ",
        "group_pattern: ^(street[0-9]+)": "group_pattern: (.*)",
        "tolerated_share: 0.01": "tolerated_share: 1.0",
    }
    for old, new in changes.items():
        assert old in params
        params = params.replace(old, new)
    write(tmp_path / "params.yaml", params)
    return tmp_path


@pytest.mark.e2e
@pytest.mark.parametrize("processes", [1, 2])
def test_awkward_files_neither_crash_nor_hang_nor_take_gigabytes_nor_vanish(project: Path, processes: int) -> None:
    command = [PSPNET, "prepare", "--raw", "data/raw", "--out", "out"]
    environment = {"PSPNET_TRACKING": "off", "PSPNET_PREPARE_PROCESSES": str(processes)}
    process = psutil.Popen(command, cwd=project, env={**psutil.Process().environ(), **environment})
    most = 0
    while process.poll() is None:
        for one in (process, *process.children(recursive=True)):
            try:
                most = max(most, one.memory_info().rss)
            except psutil.NoSuchProcess:
                continue
        try:
            process.wait(0.02)
        except psutil.TimeoutExpired:
            continue
    assert process.returncode == 0
    assert 5e7 < most <= MOST_MEMORY, f"{most / 1e6:.0f} MB"
    dataset = PreparedDataset.open(project / "out")
    with (project / "out/problems.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    left_out = [row["file"] for row in rows if row["outcome"] in ("quarantined", "duplicate")]
    there = sorted(f"images/{path.name}" for path in (project / "data/raw/images").iterdir())
    assert sorted([*dataset.index()["source"], *left_out]) == there
    assert all(row["found"] and row["expected"] for row in rows)
    assert {(row["file"].removeprefix("images/"), row["kind"]) for row in rows} >= {
        ("bomb_30000x30000_1bit_png.png", "too_large"),
        ("lying_ihdr_60000x60000_rgb_png.png", "too_large"),
        ("zero_byte_jpg.jpg", "unreadable"),
        ("head_only_512B_jpg.jpg", "unreadable"),
        ("text_named_png.png", "unreadable"),
        ("jpeg_named_png.png", "wrong_suffix"),
    }


NAMES = [f"{view}_{turn}.jpg" for view in ("Landscape", "Portrait") for turn in range(9)]


@pytest.mark.parametrize("name", NAMES)
def test_rotated_photos_are_upright_in_every_pixel(name: str) -> None:
    path = shared_data("awkward") / "exif_orientation" / name
    stored = read_image(path.read_bytes(), 10**8)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(decode_image(stored.data), expected)
    assert (stored.height > stored.width) == name.startswith("Portrait")
