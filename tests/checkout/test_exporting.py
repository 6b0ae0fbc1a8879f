"""`prepare` recreates the same set from the files that `pspnet data export` writes."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pspnet.checkout.exporting import export
from pspnet.config.reading import read_yaml
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.dataset.store.shards import open_shard
from pspnet.errors import Interrupted
from tests.command import pspnet
from tests.parameters import ROOT
from tests.raw.rawdata import encoded, noise, write

MASK = np.array([[0, 7, 255, 0]] * 3, np.uint8)
SAMPLES = [  # id, split, group, format, whether it has a mask
    ("a/1", "train", "north", "PNG", True),
    ("a/2", "val", "south", "JPEG", True),
    ("a/b/1 .", "test", "è, \"west\"", "PNG", True),
    ("a.gz", "train", "north", "JPEG", False),
    ("line\u2028end ", "test", "è, \"west\"", "PNG", False),
    ("z", "unlabeled", "nowhere", "PNG", False),
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with SAMPLES prepared. The last sample is a 16-bit grayscale image, so it is re-encoded."""
    folder = tmp_path_factory.mktemp("export")
    shutil.copy(ROOT / "params.yaml", folder)
    write(folder / "data/raw/classes.yaml", "classes: {back: 0, scratch: 7}\ncolors: {scratch: [1, 2, 3]}\n"
          "ignore_values: [255]\n")  # fmt: skip
    lines = ["id,split,group"]
    for number, (name, split, group, kind, labeled) in enumerate(SAMPLES):
        picture: Any = noise(3, 4, number) if name != "z" else np.full((3, 4), 30000, np.uint16)
        write(folder / f"data/raw/images/{name}.{kind.lower()}", encoded(picture, kind))
        if labeled:
            write(folder / f"data/raw/masks/{name}.png", encoded(MASK))
        lines.append(",".join(f'"{field.replace(chr(34), chr(34) * 2)}"' for field in (name, split, group)))
    write(folder / "data/raw/splits.csv", "\n".join(lines))
    prepared(folder)
    return folder


def prepared(project: Path, raw: str = "data/raw", out: str = "data/prepared") -> PreparedDataset:
    done = pspnet("prepare", "--raw", raw, "--out", out, cwd=project)
    assert done.returncode == 0, done.stderr
    return PreparedDataset.open(project / out)


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "project")
    return tmp_path / "project"


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_an_exported_set_prepares_to_the_same_set(project: Path) -> None:
    done = pspnet("data", "export", "data/prepared", "exported", cwd=project)
    assert (done.stdout, done.stderr, done.returncode) == (
        "exported: 6 images, 3 masks, classes.yaml, splits.csv\n", "", 0,
    )  # fmt: skip
    before, after = PreparedDataset.open(project / "data/prepared"), prepared(project, "exported", "again")
    assert (after.fingerprint, after.fingerprints) == (before.fingerprint, before.fingerprints)
    assert (after.classes, after.colors, after.class_pixels) == (before.classes, before.colors, before.class_pixels)
    columns = ["id", "split", "group", "height", "width", "has_mask"]
    pd.testing.assert_frame_equal(after.index()[columns], before.index()[columns])
    assert [tuple(row) for row in after.index()[["id", "split", "group", "has_mask"]].to_numpy()] == [
        (name, split, group, labeled) for name, split, group, _, labeled in sorted(SAMPLES)
    ]


def test_exported_masks_hold_the_prepared_class_numbers(project: Path) -> None:
    pspnet("data", "export", "data/prepared", "exported", cwd=project)
    assert read_yaml(project / "exported/classes.yaml") == {
        "classes": {"back": 0, "scratch": 1},
        "colors": {"back": [242, 61, 61], "scratch": [1, 2, 3]},
        "ignore_values": [255],
    }
    batch = open_shard(project / "data/prepared/shards/00000.arrow")
    stored = dict(zip(batch.column("id").to_pylist(), batch.column("mask").to_pylist(), strict=True))
    assert (project / "exported/masks/a/1.png").read_bytes() == stored["a/1"]


def test_only_the_requested_splits_are_exported(project: Path) -> None:
    done = pspnet("data", "export", "data/prepared", "exported", "--split", "val", "--split", "unlabeled", cwd=project)
    assert done.returncode == 0, done.stderr
    expected = {"images/a/2.jpg", "masks/a/2.png", "images/z.png", "classes.yaml", "splits.csv"}
    assert files(project / "exported") == expected
    assert (project / "exported/splits.csv").read_text() == "id,split,group\na/2,val,south\nz,unlabeled,nowhere\n"


def test_all_problems_with_the_command_are_reported_at_once(project: Path) -> None:
    write(project / "full/mine.txt", "mine")
    done = pspnet("data", "export", "data/prepared", "full", "--split", "trian", cwd=project)
    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr == (
        "2 problems:\n"
        "  --split trian: is not a split; expected one of train, val, test, unlabeled\n"
        "  full: already exists; expected an empty or missing folder. Choose another folder.\n"
    )
    assert files(project / "full") == {"mine.txt"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nothing", "out"), "nothing/dataset.json: is missing; expected a prepared dataset"),
        (("data/prepared", "params.yaml"), "params.yaml: already exists"),
        (("data/prepared", "data/prepared/out"), "data/prepared/out: is inside data/prepared; expected a folder"),
    ],
)
def test_an_unsuitable_folder_is_refused(project: Path, words: tuple[str, str], message: str) -> None:
    before = files(project)
    done = pspnet("data", "export", *words, cwd=project)
    assert done.stderr.startswith(message)
    assert (done.stdout, done.returncode) == ("", 1)
    assert files(project) == before


@pytest.mark.parametrize("name", ["../out", "/out", ".hidden/a", "a//b"])
def test_an_id_that_is_not_a_path_is_refused(project: Path, name: str) -> None:
    """Our code never produces a set with such an id."""
    path = project / "data/prepared/shards/00000.arrow"
    table = pa.Table.from_batches([open_shard(path)])
    names = [name, *table["id"].to_pylist()[1:]]
    renamed = table.set_column(0, "id", pa.array(names)).combine_chunks()
    path.unlink()  # not overwritten in place, because the old file is still mapped
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, renamed.schema) as writer:
        writer.write_table(renamed)
    done = pspnet("data", "export", "data/prepared", "out", cwd=project)
    assert done.stderr.startswith(f"id '{name}': is not a path that `prepare` would find again")
    assert done.returncode == 1
    assert not (project / "out").exists()


def test_an_interrupted_export_leaves_nothing_behind(project: Path) -> None:
    def stop(done: int, total: int, note: str) -> None:
        assert total == 6
        if done == 3:
            raise Interrupted(130)

    before = files(project)
    with pytest.raises(Interrupted):
        export(project / "data/prepared", project / "out", [], stop)
    assert files(project) == before


@pytest.mark.parametrize(("content", "told"), [(None, "is missing"), (b"", "cannot be read"), (b"ARROW", "cannot be")])
def test_a_missing_or_truncated_shard_is_named(project: Path, content: bytes | None, told: str) -> None:
    shard = project / "data/prepared/shards/00000.arrow"
    shard.unlink()
    if content is not None:
        shard.write_bytes(content)
    done = pspnet("data", "export", "data/prepared", "out", cwd=project)
    assert done.stderr.startswith(f"data/prepared/shards/00000.arrow: {told}")
    assert done.returncode == 1
