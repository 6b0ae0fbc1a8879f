"""Official layouts, tested on real files where these are available."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pspnet.errors import UserError
from pspnet.raw.classes import IGNORE
from pspnet.raw.files import RawFiles
from pspnet.raw.layouts.ade20k import NAMES as ADE_NAMES
from pspnet.raw.sample import RawSample
from pspnet.raw.validation import check
from tests.raw.found_images import classes_of, found, params, prepared
from tests.raw.rawdata import encoded, left_out, noise, rules, shared_data, write

CITYSCAPES = {"layout": "cityscapes", "images": "leftImg8bit", "masks": "gtFine", "labels": "labelIds"}
VOC = {
    "layout": "voc",
    "images": "JPEGImages",
    "masks": "SegmentationClass",
    "splits": "ImageSets/Segmentation",
}
ADE20K = {"layout": "ade20k", "images": "images", "masks": "annotations"}
PALETTE_PAIRS = {
    "layout": "folder", "images": "imgs", "masks": "gts", "image_names": r"(.*)_img\.jpg",
    "mask_names": r"(.*)_gt\.png", "mask_kind": "numbers", "mask_threshold": 128,
}  # fmt: skip


def test_both_kinds_of_cityscapes_masks_have_the_same_19_classes() -> None:
    raw = shared_data("layouts") / "cityscapes"
    name = "val/frankfurt/frankfurt_000000_000294"
    masks = []
    for labels in ("labelIds", "labelTrainIds"):
        dataset = params(CITYSCAPES | {"labels": labels})
        samples, problems = found(raw, dataset)
        assert not problems
        assert [(sample.id, sample.split) for sample in samples.values()] == [(name, "val")]
        classes = classes_of(raw, dataset)
        assert (len(classes.names), classes.names[0], classes.colors[0]) == (19, "road", (128, 64, 128))
        masks.append(prepared(raw, dataset, samples[name]))
    assert (masks[0] == masks[1]).mean() > 0.99  # the images and the masks were scaled down separately
    assert set(np.unique(masks[0])) <= {*range(19), IGNORE}
    assert (masks[0] == classes.names.index("road")).mean() > 0.2


def test_cityscapes_folders_are_official_splits() -> None:
    raw = shared_data("layouts") / "tiny_cityscapes_dataset/train_dataset"
    samples, problems = found(raw, params(CITYSCAPES | {"labels": "labelTrainIds"}))
    assert sorted((sample.split, sample.mask is not None) for sample in samples.values()) == [
        ("test", True), ("test", True), ("train", True), ("val", True),
    ]  # fmt: skip
    assert not problems


def test_cityscapes_without_label_masks_is_refused() -> None:
    raw = shared_data("layouts") / "tiny_cityscapes_dataset/dataset"
    with pytest.raises(UserError, match=r"gtFine: has no mask; expected names that match .*labelIds"):
        found(raw, params(CITYSCAPES))


def test_voc_has_its_lists_and_its_21_classes() -> None:
    raw = shared_data("layouts") / "tiny_voc_dataset1"
    dataset = params(VOC)
    samples, problems = found(raw, dataset)
    assert {name: (sample.split, sample.mask is not None) for name, sample in samples.items()} == {
        "2007_000001": ("train", True),
        "2007_000002": ("test", False),
    }
    assert not problems
    assert len(classes_of(raw, dataset).names) == 21
    mask = prepared(raw, dataset, samples["2007_000001"])  # this mask is saved as colors
    assert np.array_equal(mask, np.full((10, 20), classes_of(raw, dataset).names.index("bicycle")))


def test_voc_masks_can_be_saved_in_the_colors_of_the_palette(tmp_path: Path) -> None:
    raw = shared_data("layouts") / "labelme_voc/data_dataset_voc"
    shutil.copytree(raw, tmp_path / "raw")
    for path in (tmp_path / "raw/SegmentationClass").iterdir():
        path.write_bytes(encoded(Image.open(path).convert("RGB")))
    dataset = params(VOC)
    for name, sample in found(raw, dataset)[0].items():
        other = found(tmp_path / "raw", dataset)[0][name]
        assert np.array_equal(prepared(tmp_path / "raw", dataset, other), prepared(raw, dataset, sample))


def test_a_color_outside_the_voc_palette_is_reported(tmp_path: Path) -> None:
    write(tmp_path / "JPEGImages/1.jpg", encoded(noise(2, 2), "JPEG"))
    write(tmp_path / "SegmentationClass/1.png", encoded(np.full((2, 2, 3), (1, 2, 3), np.uint8)))
    [sample] = found(tmp_path, params(VOC))[0].values()
    raw_sample = RawSample(sample.id, sample.image, sample.mask, "group", None)
    classes = classes_of(tmp_path, params(VOC))
    problem = left_out(check(raw_sample, files=RawFiles(tmp_path), rules=rules(classes)))
    assert problem.found == "has value '#010203' in 4 pixels (100.0%)"


def test_a_labelme_export_as_voc_has_its_own_class_names() -> None:
    raw = shared_data("layouts") / "labelme_voc/data_dataset_voc"
    dataset = params(VOC)
    samples, problems = found(raw, dataset)
    assert [(sample.split, sample.mask is not None) for sample in samples.values()] == [(None, True)] * 3
    assert not problems
    classes = classes_of(raw, dataset)
    assert (classes.names[0], classes.names[-1], classes.ignore_values) == ("background", "tv/monitor", (255,))
    mask = prepared(raw, dataset, samples["2011_000003"])
    assert {classes.names[value] for value in np.unique(mask) if value != IGNORE} >= {"background", "person"}


def test_a_name_in_two_voc_lists_is_reported(tmp_path: Path) -> None:
    write(tmp_path / "JPEGImages/1.jpg", encoded(noise(4, 4), "JPEG"))
    write(tmp_path / "SegmentationClass/1.png", encoded(np.zeros((4, 4), np.uint8)))
    for split in ("train", "val"):
        write(tmp_path / f"ImageSets/Segmentation/{split}.txt", "1\n")
    samples, [problem] = found(tmp_path, params(VOC))
    lists = "ImageSets/Segmentation"
    assert (problem.where, problem.kind) == (f"{lists}/train.txt", "contradicting_splits")
    assert problem.found == f"lists 1, which is also in {lists}/val.txt"
    assert samples["1"].split == "val"


def test_ade20k_has_150_classes_numbered_from_1() -> None:
    assert len(set(ADE_NAMES)) == 150
    raw = shared_data("layouts") / "ade20k/sampleData"
    dataset = params(ADE20K)
    samples, problems = found(raw, dataset)
    assert len(samples) == 3 and not problems
    first = samples["ADE_val_00000001"]
    values = np.asarray(Image.open(raw / "annotations/ADE_val_00000001.png"))
    assert np.array_equal(prepared(raw, dataset, first), np.where(values == 0, IGNORE, values.astype(int) - 1))


def test_ade20k_folders_are_official_splits(tmp_path: Path) -> None:
    for split in ("training", "validation"):
        write(tmp_path / f"images/{split}/1.jpg", encoded(noise(4, 4), "JPEG"))
        write(tmp_path / f"annotations/{split}/1.png", encoded(np.ones((4, 4), np.uint8)))
    samples, _ = found(tmp_path, params(ADE20K))
    assert {name: sample.split for name, sample in samples.items()} == {"training/1": "train", "validation/1": "val"}


def test_palette_masks_are_paired_by_their_names() -> None:
    raw = shared_data("layouts") / "palette_pairs"
    dataset = params(PALETTE_PAIRS, classes={f"class{value}": value for value in range(8)})
    samples, problems = found(raw, dataset)
    assert list(samples) == ["00000", "00001", "00002", "00003", "00004"] and not problems
    for sample in samples.values():
        assert sample.mask
        values = np.asarray(Image.open(raw / sample.mask.path))
        assert np.array_equal(prepared(raw, dataset, sample), values)


def test_classes_in_params_override_those_of_the_layout(tmp_path: Path) -> None:
    assert classes_of(tmp_path, params(ADE20K, classes={"wall": 1, "rest": [2, 3]})).names == ("wall", "rest")
    write(tmp_path / "classes.yaml", "classes: {a: 0, b: 1}")
    assert classes_of(tmp_path, params(ADE20K)).names == ("a", "b")


def test_seams_are_ignored_in_color_masks_of_voc_too(tmp_path: Path) -> None:
    write(tmp_path / "JPEGImages/1.jpg", encoded(noise(1, 2), "JPEG"))
    mask = np.array([[(0, 0, 0), (0xE0, 0xE0, 0xC0)]], np.uint8)
    write(tmp_path / "SegmentationClass/1.png", encoded(mask))
    dataset = params(VOC)
    [sample] = found(tmp_path, dataset)[0].values()
    assert prepared(tmp_path, dataset, sample).tolist() == [[0, IGNORE]]
