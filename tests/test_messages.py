"""Messages about a user's mistake say where the mistake is, what was found, what was expected and what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.command import pspnet
from tests.parameters import ROOT
from tests.raw.rawdata import encoded, write, write_pair

PREPARE = ("prepare", "--raw", "data/raw", "--out", "data/prepared")
SCENES = ("street03", "street05", "street11", "street12", "street15", "street20")
MASK = np.zeros((8, 12), np.uint8)
MASK[:4] = 1


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The committed params and a valid dataset that fits them."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    write(tmp_path / "data/raw/classes.yaml", "classes:\n  background: 0\n  scratch: 1\n")
    for scene in SCENES:
        write_pair(tmp_path / "data/raw", f"{scene}_0", MASK)
    return tmp_path


def params(old: str, new: str) -> Callable[[Path], object]:
    def change(project: Path) -> None:
        path = project / "params.yaml"
        text = path.read_text()
        assert text.count(old) == 1, f"params.yaml does not contain `{old}` exactly once"
        path.write_text(text.replace(old, new))

    return change


def file(name: str, content: bytes | str) -> Callable[[Path], object]:
    return lambda project: write(project / "data/raw" / name, content)


def without(name: str) -> Callable[[Path], object]:
    return lambda project: shutil.rmtree(project / name)


def empty(name: str) -> Callable[[Path], object]:
    def change(project: Path) -> None:
        shutil.rmtree(project / name)
        (project / name).mkdir()

    return change


def only(*scenes: str) -> Callable[[Path], object]:
    def change(project: Path) -> None:
        for scene in set(SCENES) - set(scenes):
            (project / f"data/raw/images/{scene}_0.png").unlink()
            (project / f"data/raw/masks/{scene}_0.png").unlink()

    return change


def one_of_six(helpful: str = "") -> str:
    """Return the end of the message if one file is left out."""
    return (
        "\n1 of 6 files (16.7%) cannot be used; prepare.tolerated_share is 1.0%."
        "\nTo continue without repairing them, set in params.yaml:"
        f"\n  {helpful}prepare.tolerated_share: 0.167  # leaves out 1 file"
        "\n.pspnet/checkpoints/prepare/problems.csv lists 1 problem."
    )


def bordered(mask: np.ndarray) -> np.ndarray:
    mask = mask.copy()
    mask[0, :3] = 255
    return mask


def test_a_project_without_mistakes_is_prepared(project: Path) -> None:
    """Otherwise, the messages tested below could be about a different mistake."""
    done = pspnet(*PREPARE, cwd=project)
    assert done.returncode == 0
    assert done.stdout.startswith("6 found: 6 prepared (6 with masks), 0 quarantined, 0 duplicates, 0 left out")
    assert done.stdout.endswith("data_report.html\n")
    assert done.stderr.startswith("prepare: done in ")
    counts = json.loads((project / "data/prepared/dataset.json").read_text())["counts"]
    assert counts["prepared"] == len(SCENES)


def test_the_summary_counts_masks_and_problems(project: Path) -> None:
    raw = project / "data/raw"
    shutil.copyfile(raw / "images/street05_0.png", raw / "images/street05_1.png")
    write_pair(raw, "street05_2")
    (raw / "images/street05_2.png").rename(raw / "images/street05_2.jpg")
    done = pspnet(*PREPARE, cwd=project)
    assert done.stdout == (
        "8 found: 7 prepared (6 with masks), 0 quarantined, 1 duplicate, 0 left out; 1 x duplicate; "
        "1 x wrong_suffix (allowed)  data/prepared/data_report.html\n"
    )


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        pytest.param(
            params("  dropout: 0.1", "  dropuot: 0.1"),
            "params.yaml: unknown key 'finetune.dropuot'; did you mean 'finetune.dropout'?",
            id="unknown key",
        ),
        pytest.param(
            params("threads: 1", "threads: two"),
            "params.yaml: runtime.threads is 'two' (text); expected a whole number",
            id="params of another type",
        ),
        pytest.param(
            without("data/raw"),
            "data/raw: is missing; expected the raw data folder. "
            "Put your data there, or draw some to try: pspnet synthesize data/raw",
            id="no raw data",
        ),
        pytest.param(
            empty("data/raw/images"),
            "data/raw/images: has no image; expected names that match (.*)\\.\\w+ and end in "
            ".jpg .jpeg .png .webp .tif .tiff .bmp .gif. "
            "Put the images there, or change dataset.source in params.yaml.",
            id="no images",
        ),
        pytest.param(
            without("data/raw/masks"),
            "data/raw/masks: is missing; expected the folder given in dataset.source.masks, here or in a .zip "
            "or .tar. Create it and put the masks there, or change dataset.source.masks in params.yaml.",
            id="no folder of masks",
        ),
        pytest.param(
            empty("data/raw/masks"),
            "data/raw/masks: has no mask; expected names that match (.*)\\.\\w+ and end in .jpg .jpeg .png .webp "
            ".tif .tiff .bmp .gif. Put the masks there, or change dataset.source in params.yaml.",
            id="no masks",
        ),
        pytest.param(
            file("masks/street05_0.png", encoded(np.zeros((9, 13), np.uint8))),
            "data/raw/masks/street05_0.png: has 13 x 9 pixels, but its image images/street05_0.png has 12 x 8; "
            "expected the same size as its image. "
            "Export it again at that size. If you must scale it, use nearest neighbor, so that classes do not blend."
            + one_of_six(),
            id="mask of another size",
        ),
        pytest.param(
            file("masks/street05_0.png", encoded(bordered(MASK))),
            "data/raw/masks/street05_0.png: has value 255 in 3 pixels (3.1%); expected declared values: 0, 1. "
            'If that means "not annotated", add `ignore_values: [255]`, else name it as a class, '
            "in classes.yaml or dataset in params.yaml."
            + one_of_six("prepare.problems.mask_values: fix  # for 1 problem\n  "),
            id="value 255 not declared",
        ),
        pytest.param(
            file("images/street05_0.png", "These are words.\n"),
            "data/raw/images/street05_0.png: cannot be recognized as an image; "
            "expected one of JPEG, PNG, WEBP, TIFF, BMP, GIF. "
            "Export it again or remove it: it is another kind of file, or its beginning is damaged." + one_of_six(),
            id="text named .png",
        ),
        pytest.param(
            file("classes.yaml", "classes:\n  scratch: 1\n"),
            "data/raw/classes.yaml: names only one class, scratch; expected at least two. "
            "Also name the class of everything else, such as background: 0.",
            id="one class",
        ),
        pytest.param(
            only("street11", "street20"),
            "splits: masks: 2 in train (2 groups), 0 in val (0 groups), 0 in test (0 groups); "
            "expected at least one in each split, with no group divided. "
            "Add masks for more groups, name smaller groups (dataset.group_pattern), write splits.csv, "
            "set prepare.split_by: stratified, or change prepare.split_seed, prepare.val_share or prepare.test_share."
            "\n.pspnet/checkpoints/prepare/problems.csv lists 1 problem.",
            id="no group in val",
        ),
        pytest.param(
            lambda project: (project / "data/raw/classes.yaml").unlink(),
            "data/raw/classes.yaml: is missing, and dataset.classes in params.yaml is {}; "
            "expected classes in one of the two, for example\n\n"
            "classes:\n"
            "  background: 0\n"
            "  scratch: [1, 2]       # two mask values, one class\n"
            "  dent: '#dc143c'       # a color, for color masks\n"
            "colors:                 # optional, for pictures\n"
            "  scratch: [220, 20, 60]\n"
            "ignore_values: [255]    # optional: not annotated",
            id="classes nowhere",
        ),
        pytest.param(
            lambda project: (project / "params.yaml").unlink(),
            "params.yaml: is missing. Run this in your checkout.",
            id="no params",
        ),
    ],
)
def test_a_mistake_gives_one_message(project: Path, mistake: Callable[[Path], object], message: str) -> None:
    mistake(project)
    done = pspnet(*PREPARE, cwd=project)
    assert (done.stderr, done.stdout, done.returncode) == (message + "\n", "", 1)
    assert not (project / "data/prepared").exists()
