"""Layout `class_folders`: the name of a folder is the class."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pspnet.errors import UserError
from pspnet.raw.layouts.pairs import FoundImage
from tests.raw.found_images import classes_of, found, outcome, params, prepared
from tests.raw.rawdata import encoded, left_out, noise, write

BY_ID = {
    "layout": "class_folders", "images": "images", "masks": "masks", "paired_by": "id", "mask_suffix": "",
    "mask_threshold": 128, "background_folders": [],
}  # fmt: skip
MVTEC = BY_ID | {
    "images": ".", "masks": "ground_truth", "paired_by": "class_and_id", "mask_suffix": "_mask",
    "background_folders": ["good"],
}  # fmt: skip
LEFT = [[255, 255, 0, 0]] * 2
TOP = [[255] * 4, [0] * 4]


def write_image(raw: Path, name: str) -> None:
    write(raw / f"{name}.jpg", encoded(noise(2, 4, seed=len(name)), "JPEG"))


def write_mask(raw: Path, name: str, pixels: list[list[int]]) -> None:
    write(raw / f"{name}.png", encoded(np.array(pixels, np.uint8)))


def reported(raw: Path, source: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(problem.where, problem.found, problem.kind) for problem in found(raw, params(source))[1]]


def rows(raw: Path, source: dict[str, Any], sample: FoundImage) -> list[str]:
    return ["".join(map(str, row)) for row in prepared(raw, params(source), sample).tolist()]


def test_masks_of_several_classes_are_merged_with_the_alphabetically_later_on_top(tmp_path: Path) -> None:
    write_image(tmp_path, "images/day1/0001")
    write_mask(tmp_path, "masks/scratch/day1/0001", TOP)
    write_mask(tmp_path, "masks/dent/day1/0001", LEFT)
    write_image(tmp_path, "images/0002")
    samples, problems = found(tmp_path, params(BY_ID))
    assert classes_of(tmp_path, params(BY_ID)).names == ("background", "dent", "scratch")
    assert rows(tmp_path, BY_ID, samples["day1/0001"]) == ["2222", "1100"]
    assert samples["0002"].mask is None  # the image counts as unlabeled, not as background
    assert not problems


def test_gray_below_the_threshold_is_not_the_class(tmp_path: Path) -> None:
    write_image(tmp_path, "images/1")
    write_mask(tmp_path, "masks/dent/1", [[0, 127, 128, 255]] * 2)
    [sample] = found(tmp_path, params(BY_ID))[0].values()
    assert rows(tmp_path, BY_ID, sample) == ["0011", "0011"]


def test_mvtec_folders_are_read_and_good_images_are_background(tmp_path: Path) -> None:
    for name in ("train/good/000", "test/good/000", "test/broken/000", "test/contamination/000", "test/broken/001"):
        write_image(tmp_path, name)
    write_mask(tmp_path, "ground_truth/broken/000_mask", LEFT)
    write_mask(tmp_path, "ground_truth/contamination/000_mask", TOP)
    write(tmp_path / "license.txt", "")
    write(tmp_path / "splits.csv", "")
    samples, problems = found(tmp_path, params(MVTEC))
    assert not problems
    assert classes_of(tmp_path, params(MVTEC)).names == ("background", "broken", "contamination")
    drawn = {name: rows(tmp_path, MVTEC, sample) for name, sample in samples.items() if sample.mask}
    assert drawn == {
        "broken/000": ["1100", "1100"],
        "contamination/000": ["2222", "0000"],
        "test/good/000": ["0000", "0000"],
        "train/good/000": ["0000", "0000"],
    }
    assert samples.keys() - drawn.keys() == {"broken/001"}
    assert (samples["train/good/000"].split, samples["broken/000"].split) == ("train", "test")


def test_two_images_with_the_same_class_and_name_are_reported(tmp_path: Path) -> None:
    for name in ("train/broken/000", "test/broken/000"):
        write_image(tmp_path, name)
    write_mask(tmp_path, "ground_truth/broken/000_mask", LEFT)
    found_, kind = "has the same id as", "ambiguous"
    assert reported(tmp_path, MVTEC) == [
        ("test/broken/000.jpg", f"{found_} train/broken/000.jpg", kind),
        ("train/broken/000.jpg", f"{found_} test/broken/000.jpg", kind),
    ]


def test_files_without_a_partner_are_reported(tmp_path: Path) -> None:
    write_image(tmp_path, "images/1")
    write_image(tmp_path, "images/2")
    for name in ("dent/1", "dent/3", "4"):
        write_mask(tmp_path, f"masks/{name}", LEFT)
    for suffix in ("png", "bmp"):
        write(tmp_path / f"masks/dent/2.{suffix}", encoded(np.zeros((2, 4), np.uint8), suffix.upper()))
    write(tmp_path / "masks/dent/notes.docx", "")
    assert sorted(reported(tmp_path, BY_ID)) == [
        ("images/2.jpg", "has several masks of one class: masks/dent/2.bmp, masks/dent/2.png", "ambiguous"),
        ("masks/4.png", "does not have the name of an image or a mask", "not_an_image"),
        ("masks/dent/3.png", "is a mask without an image", "mask_without_image"),
        ("masks/dent/notes.docx", "does not have the suffix of an image", "not_an_image"),
    ]


def test_masks_of_different_sizes_are_reported(tmp_path: Path) -> None:
    write_image(tmp_path, "images/1")
    write_mask(tmp_path, "masks/dent/1", LEFT)
    write_mask(tmp_path, "masks/scratch/1", [[0, 0], [0, 0]])
    [sample] = found(tmp_path, params(BY_ID))[0].values()
    problem = left_out(outcome(tmp_path, params(BY_ID), sample))
    assert "masks/scratch/1.png differs from masks/dent/1.png" in problem.found


def test_a_mask_below_the_images_folder_is_never_treated_as_an_image(tmp_path: Path) -> None:
    write_image(tmp_path, "test/broken/000")
    write_mask(tmp_path, "ground_truth/broken/000", LEFT)
    write_mask(tmp_path, "ground_truth/broken/000_mask", LEFT)
    assert reported(tmp_path, MVTEC) == [
        ("ground_truth/broken/000.png", "does not have the name of an image or a mask", "not_an_image")
    ]
    assert list(found(tmp_path, params(MVTEC))[0]) == ["broken/000"]


def test_folders_without_a_pair_are_refused(tmp_path: Path) -> None:
    write_image(tmp_path, "images/1")
    with pytest.raises(UserError, match="masks: is missing"):
        found(tmp_path, params(BY_ID))
    write_mask(tmp_path, "masks/dent/2", LEFT)
    with pytest.raises(UserError, match=r"none of 1 masks has the id of an image; one mask is masks/dent/2\.png"):
        found(tmp_path, params(BY_ID))


BESIDE = MVTEC | {"masks": "."}


def test_masks_next_to_their_images_are_merged_and_a_background_folder_has_no_class(tmp_path: Path) -> None:
    for name in ("dent/1", "dent/2", "good/3"):
        write_image(tmp_path, name)
    write_mask(tmp_path, "dent/1_mask", LEFT)
    write_mask(tmp_path, "dent/2_mask", LEFT)
    write_mask(tmp_path, "dent/2_mask_1", TOP)
    write_mask(tmp_path, "good/3_mask", TOP)
    write(tmp_path / "papers/readme.txt", "")
    samples, problems = found(tmp_path, params(BESIDE))
    assert not problems
    assert classes_of(tmp_path, params(BESIDE)).names == ("background", "dent")
    assert {name: rows(tmp_path, BESIDE, sample) for name, sample in samples.items()} == {
        "dent/1": ["1100", "1100"],
        "dent/2": ["1111", "1100"],
        "good/3": ["0000", "0000"],
    }
