"""`pspnet data inspect` on real sets, on common naming schemes, and on garbage."""

import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pspnet.config.dataset import DatasetParams
from pspnet.config.reading import parse_value, validate
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.errors import UserError
from pspnet.inspection.findings import Inspection
from pspnet.inspection.inspecting import inspect_folder
from pspnet.raw.classes import declared_classes
from pspnet.raw.files import RawFiles
from pspnet.raw.grouping import grouped
from pspnet.raw.layouts import LAYOUTS
from pspnet.raw.layouts.pairs import FoundImage
from pspnet.raw.sample import RawSample
from pspnet.raw.validation import check
from pspnet.stages import prepare
from pspnet.tracking.run import StageRun
from tests.parameters import demo_params
from tests.planning.laptop import planned_for
from tests.raw.rawdata import Pixels, encoded, left_out, noise, png_claiming, rules, shared_data, write

STRIPES = np.repeat([0, 1, 2], 4)[None].repeat(8, 0).astype(np.uint8)  # an array of shape (8, 12)
COUNT = 12


def inspected(folder: Path, **options: Any) -> Inspection:
    return inspect_folder(folder, lambda *_: None, **options)


def pasted(inspection: Inspection) -> DatasetParams:
    """Return the printed section as it would look in a user's params.yaml."""
    return validate(DatasetParams, parse_value(inspection.section, "printed")["dataset"], "printed")


def samples(folder: Path, dataset: DatasetParams) -> dict[str, FoundImage]:
    items = LAYOUTS[dataset.source.layout].find(dataset.source, RawFiles(folder))
    return {item.id: item for item in items if isinstance(item, FoundImage) and not item.problem}


def remarks_of(inspection: Inspection) -> str:
    return "\n".join(f"{remark.found} {remark.advice}" for remark in inspection.remarks)


def photo(seed: int, size: tuple[int, int] = (8, 12)) -> bytes:
    return encoded(noise(*size, seed=seed), "JPEG")


def fill(folder: Path, image: str, mask: str, count: int = COUNT) -> Path:
    """Write images and masks. `{}` in the names becomes a number."""
    for number in range(count):
        write(folder / image.format(f"{number:03}"), photo(number))
        if mask:
            write(folder / mask.format(f"{number:03}"), encoded(STRIPES))
    return folder


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/{}.jpg", "masks/{}.png"),
        ("images/{}.jpg", "labels/{}.png"),
        ("imgs/{}_img.jpg", "gts/{}_gt.png"),
        ("data/images/street/{}.jpg", "data/masks/street/{}.png"),
        ("images/{}.jpg", "masks/{}_mask.png"),
        ("images/{}.jpg", "masks/mask_{}.png"),
        ("images/img_{}.jpg", "labels/label_{}.png"),
        ("{}.jpg", "{}_mask.png"),
        ("{}.jpg", "{}_gt.png"),
        ("{}.jpg", "{}_label.png"),
        ("{}.jpg", "{}-seg.png"),
        ("{}_sat.jpg", "{}_mask.png"),
        ("{}.jpg", "mask_{}.png"),
        ("x{}.jpg", "masks/x{}.png"),
        ("{}.jpg", "{}.png"),
        ("photos/{}.jpg", "photos/{}.png"),
        ("train/image/{}.jpg", "train/label/{}.png"),
        ("train_images/{}.jpg", "train_masks/{}.png"),
        ("train/{}.jpg", "trainannot/{}.png"),
        ("imagesTr/case_{}_0000.jpg", "labelsTr/case_{}.png"),
        ("JPEGs/{}.jpg", "Segmentation/{}.png"),
        ("A/{}.jpg", "B/{}.png"),  # no word tells images from masks
        ("{}.jpg", "{}_1stHO.png"),
    ],
)
def test_images_and_masks_are_paired_by_their_names(tmp_path: Path, image: str, mask: str) -> None:
    fill(tmp_path, image, mask)
    inspection = inspected(tmp_path)
    assert inspection.layout
    assert inspection.layout.layout == "folder"
    dataset = pasted(inspection)
    found = samples(tmp_path, dataset)
    assert {(item.image, item.mask.path if item.mask else None) for item in found.values()} == {
        (image.format(f"{number:03}"), mask.format(f"{number:03}")) for number in range(COUNT)
    }
    assert dataset.classes == {"class_0": 0, "class_1": 1, "class_2": 2}


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("{}/images/{{}}.jpg", "{}/masks/{{}}.png"),
        ("{}/{{}}.jpg", "{}annot/{{}}.png"),
        ("{}_images/{{}}.jpg", "{}_masks/{{}}.png"),
        ("images/{}/{{}}.jpg", "masks/{}/{{}}.png"),
        ("{}/{{}}.jpg", "{}/{{}}_mask.png"),
    ],
)
def test_equal_names_in_different_splits_are_not_mixed_up(tmp_path: Path, image: str, mask: str) -> None:
    for split in ("train", "val"):
        fill(tmp_path, image.format(split), mask.format(split))
    inspection = inspected(tmp_path)
    found = samples(tmp_path, pasted(inspection))
    assert {(item.image, item.mask.path if item.mask else None) for item in found.values()} == {
        (image.format(split).format(f"{number:03}"), mask.format(split).format(f"{number:03}"))
        for number in range(COUNT)
        for split in ("train", "val")
    }
    assert all(name.startswith(("train/", "val/")) for name in found)
    assert "official splits: train (12 images), val (12 images)" in remarks_of(inspection)
    assert "val_is_test" in remarks_of(inspection)


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("stage1/{}/images/{}.jpg", "stage1/{}/masks/{}_{{}}.png"),
        ("images/{}.jpg", "masks/{}/{{}}.png"),
        ("images/{}.jpg", "masks/{}_{{}}.png"),
        ("{}.jpg", "{}_mask_{{}}.png"),
        ("{}.jpg", "{}_mask{{}}.png"),
    ],
)
def test_several_masks_of_one_image_are_objects(tmp_path: Path, image: str, mask: str) -> None:
    for number in range(COUNT):
        name = f"cell{number:03}"
        write(tmp_path / image.replace("{}", name), photo(number))
        for one in range(1 + number % 3):
            path = mask.replace("{}", name).replace("{" + name + "}", f"{one}")
            write(tmp_path / path, encoded((STRIPES == 1).astype(np.uint8) * 255))
    dataset = pasted(inspected(tmp_path))
    assert (dataset.source.layout, dataset.source.mask_kind) == ("folder", "instances")  # type: ignore[union-attr]
    found = samples(tmp_path, dataset)
    counts = [len(item.mask.paths) if item.mask else 0 for item in sorted(found.values(), key=lambda item: item.image)]
    assert counts == [1 + number % 3 for number in range(COUNT)]
    assert dataset.classes == {"background": 0, "object": 1}


def test_images_in_other_folders_are_unlabeled(tmp_path: Path) -> None:
    fill(tmp_path, "train/images/{}.jpg", "train/masks/{}.png")
    fill(tmp_path, "more/{}.jpg", "")
    fill(tmp_path, "train/overlays/{}.jpg", "")
    inspection = inspected(tmp_path)
    found = samples(tmp_path, pasted(inspection))
    assert sorted(item.image for item in found.values() if not item.mask) == [f"more/{n:03}.jpg" for n in range(COUNT)]
    assert sum(1 for item in found.values() if item.mask) == COUNT


def test_archives_are_read(tmp_path: Path) -> None:
    fill(tmp_path / "loose", "images/{}.jpg", "masks/{}.png")
    with zipfile.ZipFile(tmp_path / "batch.zip", "w") as archive:
        for path in sorted((tmp_path / "loose").rglob("*.*")):
            archive.write(path, path.relative_to(tmp_path / "loose"))
    shutil.rmtree(tmp_path / "loose")
    inspection = inspected(tmp_path)
    assert inspection.listing.archives() == ["batch.zip"]
    assert len(samples(tmp_path, pasted(inspection))) == COUNT
    assert len(inspection.image_facts.sizes) == COUNT


def values(folder: Path, pixels: NDArray[Any]) -> Inspection:
    """Inspect images that all have this mask."""
    for number in range(COUNT):
        write(folder / f"images/{number}.jpg", photo(number, (pixels.shape[0], pixels.shape[1])))
        write(folder / f"masks/{number}.png", encoded(pixels))
    return inspected(folder)


def block(height: int, width: int, value: int, around: int = 0, size: int = 40) -> Pixels:
    pixels = np.full((size, size), around, np.uint8)
    pixels[size // 4 : size // 4 + height, size // 4 : size // 4 + width] = value
    return pixels


def test_255_is_ignored_if_the_other_values_are_small_numbers(tmp_path: Path) -> None:
    pixels = block(20, 20, 255)
    pixels[11:29, 11:29] = 2
    inspection = values(tmp_path, pixels)
    dataset = pasted(inspection)
    assert (dataset.classes, dataset.ignore_values) == ({"class_0": 0, "class_2": 2}, [255])
    assert '255 means "not annotated": it covers 4.8% of the pixels, 100% of them next to another value' in remarks_of(
        inspection
    )


def test_255_beside_0_alone_is_a_class(tmp_path: Path) -> None:
    inspection = values(tmp_path, block(20, 20, 0, around=255))
    dataset = pasted(inspection)
    assert (dataset.classes, dataset.ignore_values) == ({"class_0": 0, "class_255": 255}, [])
    assert "255 is a class: the only other number is 0, and 255 covers 75.0% of the pixels" in remarks_of(inspection)


def test_numbers_that_begin_at_1_are_reported(tmp_path: Path) -> None:
    inspection = values(tmp_path, block(20, 20, 2, around=1))
    assert pasted(inspection).classes == {"class_1": 1, "class_2": 2}
    assert "the numbers start at 1: no pixel of 12 masks is 0" in remarks_of(inspection)


def test_a_rare_0_may_mean_not_annotated(tmp_path: Path) -> None:
    pixels = block(20, 20, 2, around=1)
    pixels[:2], pixels[30:] = 0, 3
    assert '0 may mean "not annotated": it covers 5.0% of the pixels' in remarks_of(values(tmp_path, pixels))


def test_a_palette_is_reported_and_its_indices_are_the_values(tmp_path: Path) -> None:
    image = Image.fromarray(STRIPES).convert("P")
    image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    image.putdata(STRIPES.ravel().tolist())
    for number in range(COUNT):
        write(tmp_path / f"images/{number}.jpg", photo(number))
        write(tmp_path / f"masks/{number}.png", encoded(image))
    inspection = inspected(tmp_path)
    assert pasted(inspection).classes == {"class_0": 0, "class_1": 1, "class_2": 2}
    assert "12 of 12 masks have a palette" in remarks_of(inspection)


def test_a_few_colors_are_treated_as_classes(tmp_path: Path) -> None:
    colors = np.array([(0, 0, 0), (220, 20, 60), (0, 130, 200)], np.uint8)
    dataset = pasted(values(tmp_path, colors[STRIPES]))
    assert dataset.source.mask_kind == "colors"  # type: ignore[union-attr]
    assert dataset.classes == {"class_0": "#000000", "class_1": "#0082c8", "class_2": "#dc143c"}


def test_a_table_next_to_the_data_names_the_colors(tmp_path: Path) -> None:
    write(tmp_path / "class_dict.csv", "name, r, g, b\nroad, 220, 20, 60\nvoid, 0, 0, 0\nsky, 0, 130, 200\n")
    colors = np.array([(0, 0, 0), (220, 20, 60), (0, 130, 200)], np.uint8)
    inspection = values(tmp_path, colors[STRIPES])
    dataset = pasted(inspection)
    assert dataset.classes == {"sky": "#0082c8", "road": "#dc143c"}
    assert dataset.ignore_values == ["#000000"]
    assert "calls '#000000' void, which means \"not annotated\"" in remarks_of(inspection)


def test_a_list_next_to_the_data_names_the_numbers(tmp_path: Path) -> None:
    write(tmp_path / "labels.txt", "__ignore__\n_background_\nscratch\ndent\n")
    assert pasted(values(tmp_path, STRIPES)).classes == {"background": 0, "scratch": 1, "dent": 2}


def test_classes_yaml_replaces_the_proposed_classes(tmp_path: Path) -> None:
    write(tmp_path / "classes.yaml", "classes: {a: 0, b: [1, 2]}\n")
    inspection = values(tmp_path, STRIPES)
    assert pasted(inspection).classes == {}
    assert "classes.yaml lists the classes" in remarks_of(inspection)


def blurred(bright: int = 255) -> Pixels:
    return np.asarray(Image.fromarray(block(20, 20, bright, size=60)).resize((90, 90), Image.Resampling.BICUBIC))


def test_gray_edges_lead_to_reading_masks_by_levels(tmp_path: Path) -> None:
    inspection = values(tmp_path, blurred())
    dataset = pasted(inspection)
    assert (dataset.source.mask_kind, dataset.source.mask_threshold) == ("levels", 128)  # type: ignore[union-attr]
    assert dataset.classes == {"background": 0, "object": 1}
    assert "the edges are gray: 0 and 255 cover" in remarks_of(inspection)


def test_jpeg_masks_of_two_classes_lead_to_reading_masks_by_levels(tmp_path: Path) -> None:
    for number in range(COUNT):
        write(tmp_path / f"images/{number}.jpg", photo(number, (40, 40)))
        write(tmp_path / f"masks/{number}.jpg", encoded(block(20, 20, 255), "JPEG"))
    inspection = inspected(tmp_path)
    dataset = pasted(inspection)
    assert dataset.source.mask_kind == "levels"  # type: ignore[union-attr]
    assert 100 < dataset.source.mask_threshold < 156  # type: ignore[union-attr]
    assert "the masks are JPEGs" in remarks_of(inspection)


def test_jpeg_masks_of_many_classes_cannot_be_repaired(tmp_path: Path) -> None:
    for number in range(COUNT):
        write(tmp_path / f"images/{number}.jpg", photo(number))
        write(tmp_path / f"masks/{number}.jpg", encoded(np.kron(STRIPES * 90, np.ones((8, 8), np.uint8)), "JPEG"))
    assert "these files no longer show which class a pixel had" in remarks_of(inspected(tmp_path))


def test_colors_with_smoothed_edges_are_reported(tmp_path: Path) -> None:
    colors = np.array([(0, 0, 0), (220, 20, 60), (0, 130, 200)], np.uint8)
    sharp = Image.fromarray(colors[np.kron(STRIPES, np.ones((30, 30), np.uint8))])
    inspection = values(tmp_path, np.asarray(sharp.resize((540, 360), Image.Resampling.BICUBIC)))
    assert "the edges were smoothed" in remarks_of(inspection)
    assert pasted(inspection).classes == {"class_0": "#000000", "class_1": "#0082c8", "class_2": "#dc143c"}


def test_masks_of_a_different_size_or_with_a_single_value_are_reported(tmp_path: Path) -> None:
    inspection = values(tmp_path, np.zeros((4, 4), np.uint8))
    for number in range(COUNT):
        write(tmp_path / f"images/{number}.jpg", photo(number))
    inspection = inspected(tmp_path)
    assert "12 of 12 masks differ in size from their images" in remarks_of(inspection)
    assert "has 4 x 4 pixels, and its image has 12 x 8" in remarks_of(inspection)
    assert "every mask that was opened contains only 0" in remarks_of(inspection)


def test_object_numbers_are_not_classes(tmp_path: Path) -> None:
    pixels = np.arange(96, dtype=np.uint16).reshape(8, 12) * 97
    inspection = values(tmp_path, pixels)
    assert "96 different numbers, up to 9,215" in remarks_of(inspection)
    assert pasted(inspection).classes == {}


def test_a_stable_sample_of_masks_is_opened(tmp_path: Path) -> None:
    fill(tmp_path, "images/{}.jpg", "masks/{}.png", count=30)
    first, again = inspected(tmp_path, most_masks=10), inspected(tmp_path, most_masks=10)
    paths = [one.path for one in first.mask_facts.looked_at]
    assert len(paths) == 10
    assert paths == [one.path for one in again.mask_facts.looked_at]
    assert first.sheet == again.sheet


def scenes(folder: Path, pattern: str, scenes: int, frames: int) -> Path:
    for scene in range(scenes):
        for frame in range(frames):
            name = pattern.format(scene=scene, frame=frame)
            moving = noise(32, 32, seed=scene)
            moving[:2] = noise(2, 32, seed=1000 * scene + frame)
            write(folder / f"images/{name}.png", encoded(moving))
            write(folder / f"masks/{name}.png", encoded(np.eye(32, dtype=np.uint8)))
    return folder


def groups(folder: Path, dataset: DatasetParams) -> list[int]:
    counts: dict[str, int] = {}
    for name in samples(folder, dataset):
        match = re.match(dataset.group_pattern or "", name)
        assert match
        counts[match[1]] = counts.get(match[1], 0) + 1
    return sorted(counts.values())


@pytest.mark.parametrize("pattern", ["scene{scene:02}/{frame:04}", "drive{scene:02}_{frame:04}", "p{scene:02}-{frame}"])
def test_frames_of_a_scene_form_a_group(tmp_path: Path, pattern: str) -> None:
    inspection = inspected(scenes(tmp_path, pattern, scenes=20, frames=5))
    assert groups(tmp_path, pasted(inspection)) == [5] * 20
    assert "20 groups by" in remarks_of(inspection)


def test_one_sequence_is_cut_into_blocks(tmp_path: Path) -> None:
    still = noise(200, 48)
    for frame in range(120):
        picture = still[frame : frame + 48]  # the camera keeps moving
        picture = np.asarray(Image.fromarray(picture).resize((4, 4), Image.Resampling.BOX).resize((48, 48)))
        write(tmp_path / f"images/{frame:05}.png", encoded(picture))
        write(tmp_path / f"masks/{frame:05}.png", encoded(np.eye(48, dtype=np.uint8)))
    inspection = inspected(tmp_path)
    assert groups(tmp_path, pasted(inspection)) == [10] * 12
    assert "images with consecutive numbers look alike" in remarks_of(inspection)
    assert "12 groups by 10 consecutive numbers" in remarks_of(inspection)


def test_images_unlike_their_neighbors_form_their_own_groups(tmp_path: Path) -> None:
    inspection = inspected(fill(tmp_path, "images/{}.jpg", "masks/{}.png", count=60))
    assert pasted(inspection).group_pattern == "(.*)"
    assert "look alike" not in remarks_of(inspection)


@pytest.mark.e2e
def test_the_command_for_official_folders_writes_a_valid_splits_csv(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        fill(tmp_path, f"images/{split}/{split}{{}}.jpg", f"masks/{split}/{split}{{}}.png")
    inspection = inspected(tmp_path)
    [advice] = [remark.advice for remark in inspection.remarks if "official splits" in remark.found]
    subprocess.run(advice.partition(": ")[2].partition(" (prepare")[0], shell=True, check=True)
    dataset = pasted(inspection)
    found = LAYOUTS["folder"].find(dataset.source, RawFiles(tmp_path))
    splits = [(item.id[:3], item.split) for item in grouped(found, "(.*)", tmp_path) if isinstance(item, RawSample)]
    assert set(splits) == {("tra", "train"), ("val", "val"), ("tes", "test")}
    assert len(splits) == 3 * COUNT


@pytest.mark.e2e
def test_the_command_for_official_lists_writes_a_valid_splits_csv(tmp_path: Path) -> None:
    shutil.copytree(shared_data("layouts") / "palette_pairs", tmp_path / "raw")
    for folder in (tmp_path / "raw", *(tmp_path / "raw").rglob("*")):
        folder.chmod(0o755)
    inspection = inspected(tmp_path / "raw")
    [advice] = [remark.advice for remark in inspection.remarks if "official splits" in remark.found]
    subprocess.run(advice.partition(": ")[2].partition(" and prepare")[0], shell=True, check=True)
    found = LAYOUTS["folder"].find(pasted(inspection).source, RawFiles(tmp_path / "raw"))
    splits = {item.id: item.split for item in grouped(found, "(.*)", tmp_path / "raw") if isinstance(item, RawSample)}
    train = (tmp_path / "raw/splits/train.txt").read_text().split()
    assert len(train) == 4
    assert splits == {f"{n:05}": "train" if f"{n:05}" in train else "val" for n in range(5)}
    assert "splits.csv assigns images to splits" in remarks_of(inspected(tmp_path / "raw"))


REAL = [
    ("camvid", "camvid", 468, 468),
    ("steel_defects", "folder", 3630, 3630),
    ("cell_membranes", "folder", 60, 30),
    ("layouts/ade20k", "ade20k", 3, 3),
    ("layouts/cityscapes", "cityscapes", 1, 1),
    ("layouts/coco_instances", "coco", 3, 3),
    ("layouts/coco_panoptic", "coco_panoptic", 2, 2),
    ("layouts/labelme_instances", "labelme", 3, 3),
    ("layouts/labelme_voc", "voc", 3, 3),
    ("layouts/labelme_voc/data_annotated", "labelme", 3, 3),
    ("layouts/labelme_voc/data_dataset_voc", "voc", 3, 3),
    ("layouts/palette_pairs", "folder", 5, 5),
    ("layouts/tiny_cityscapes_dataset", "cityscapes", 4, 4),
    ("layouts/tiny_cityscapes_dataset/train_dataset", "cityscapes", 4, 4),
    ("layouts/tiny_coco_instances", "coco", 1, 1),  # in the other image, an annotation has no outline
    ("layouts/tiny_for_images", "cvat", 4, 4),  # one of the two files has a shape without a label
    ("layouts/tiny_for_images/export_project", "cvat", 6, 6),
    ("layouts/tiny_voc_dataset1", "voc", 2, 1),
]


@pytest.mark.parametrize(("name", "layout", "images", "masks"), REAL, ids=[name for name, *_ in REAL])
def test_the_section_for_real_data_is_read_by_prepare(name: str, layout: str, images: int, masks: int) -> None:
    raw = shared_data(name)
    inspection = inspected(raw)
    if layout not in LAYOUTS:
        assert [other.layout for other in inspection.others][:1] == [layout]
        assert inspection.others[0].obstacle == "this version cannot read this layout"
        pytest.skip(f"layout {layout} is recognized; there is no adapter for it yet")
    assert inspection.layout
    assert inspection.layout.layout == layout
    assert inspection.sheet
    dataset = pasted(inspection)
    found = samples(raw, dataset)
    assert (len(found), sum(item.mask is not None for item in found.values())) == (images, masks)
    files = RawFiles(raw)
    list(files.below("."))  # this lists the files in the archives
    classes = declared_classes(dataset, raw, LAYOUTS[layout].classes(dataset.source, files))
    checked = [
        check(RawSample(one.id, one.image, one.mask, "", None), files=files, rules=rules(classes, 10**8))
        for one in sorted(found.values())[:12]
    ]
    refused = [str(left_out(one)) for one in checked if one.image is None]
    assert not refused
    if name.startswith("layouts/tiny_cityscapes"):
        assert "the folders are those of Cityscapes, but" in remarks_of(inspection), "19 is no class of Cityscapes"


INCOMPLETE = [
    ("layouts/tiny_cityscapes_dataset/dataset", "there is no *_gtFine_labelIds.png"),
    ("layouts/tiny_for_images/export_task", "has label ''"),
    ("layouts/tiny_ade20k2020_dataset", "this is the full release, with parts and instances"),
]


def test_every_layout_of_the_shared_data_is_inspected() -> None:
    named = {name for name, *_ in REAL} | {name for name, _ in INCOMPLETE}
    assert {f"layouts/{folder.name}" for folder in shared_data("layouts").iterdir() if folder.is_dir()} <= named


CLASS_FOLDERS = {
    "flat": ("images/{}.jpg", ("masks/scratch/{}.png", "masks/dent/{}.png"), ""),
    "MVTec AD": ("test/broken/{}.jpg", ("ground_truth/broken/{}_mask.png",), "train/good/{}.jpg"),
}


@pytest.mark.parametrize("name", CLASS_FOLDERS)
def test_a_folder_for_each_class_is_recognized(name: str, tmp_path: Path) -> None:
    image, masks, without = CLASS_FOLDERS[name]
    for place, mask in enumerate(masks):
        fill(tmp_path, image, mask)
        for number in range(COUNT):
            write(tmp_path / mask.format(f"{number:03}"), encoded(np.where(place == STRIPES, 255, 0).astype(np.uint8)))
    if without:
        fill(tmp_path, without, "")
    inspection = inspected(tmp_path)
    found = samples(tmp_path, pasted(inspection))
    assert sum(item.mask is not None for item in found.values()) == COUNT * (2 if without else 1)


def test_masks_exported_by_cvat_are_recognized(tmp_path: Path) -> None:
    colors = np.array([(0, 0, 0), (220, 20, 60), (0, 130, 200)], np.uint8)
    labels = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nscratch:220,20,60::\ndent:0,130,200::\n"
    write(tmp_path / "export/labelmap.txt", labels)
    for number in range(COUNT):
        for folder in ("SegmentationClass", "SegmentationObject"):
            write(tmp_path / f"export/{folder}/{number}.png", encoded(colors[STRIPES]))
    assert "the images of the masks are missing" in inspected(tmp_path).others[0].obstacle
    fill(tmp_path, "photos/{}.jpg", "")
    for number in range(COUNT):
        (tmp_path / f"photos/{number:03}.jpg").rename(tmp_path / f"photos/{number}.jpg")
    inspection = inspected(tmp_path)
    if "cvat_masks" not in LAYOUTS:
        assert [other.layout for other in inspection.others] == ["cvat_masks"]
        pytest.skip("layout cvat_masks is recognized; there is no adapter for it yet")
    assert sum(item.mask is not None for item in samples(tmp_path, pasted(inspection)).values()) == COUNT
    assert {*inspection.class_names.values()} == {"background", "scratch", "dent"}


@pytest.mark.parametrize(("name", "reason"), INCOMPLETE)
def test_an_incomplete_layout_is_reported(name: str, reason: str) -> None:
    inspection = inspected(shared_data(name))
    assert inspection.layout is None
    assert inspection.section == ""
    assert reason in inspection.others[0].obstacle


def test_steel_defects_have_four_classes_and_no_sequence() -> None:
    inspection = inspected(shared_data("steel_defects"))
    dataset = pasted(inspection)
    assert dataset.classes == {f"class_{value}": value for value in range(4)}
    assert (dataset.ignore_values, dataset.group_pattern) == ([], "(.*)")
    assert len(inspection.mask_facts.looked_at) == 200


def test_cell_membranes_are_a_sequence_with_two_classes() -> None:
    inspection = inspected(shared_data("cell_membranes"))
    assert pasted(inspection).classes == {"class_0": 0, "class_255": 255}
    assert "255 is a class: the only other number is 0, and 255 covers 78.0% of the pixels" in remarks_of(inspection)
    assert "images with consecutive numbers look alike" in remarks_of(inspection)
    assert "With group_pattern (.*), they leak" in remarks_of(inspection)


@pytest.mark.parametrize("name", ["cell_membranes", "layouts/palette_pairs"])
def test_the_printed_section_prepares(name: str, tmp_path: Path) -> None:
    raw = shared_data(name)
    shares = {"prepare__val_share": 0.15, "prepare__test_share": 0.2, "prepare__split_seed": 0}
    out = tmp_path / "prepared"
    own = demo_params(**shares).prepare
    prepare.run(
        pasted(inspected(raw)),
        own,
        raw=raw,
        out=out,
        checkpoints=tmp_path / "state",
        run=StageRun(),
        tick=lambda *_: None,
    )
    prepared = PreparedDataset.open(out)
    assert not prepared.quarantined
    assert sum(prepared.images.values()) == {"cell_membranes": 60, "layouts/palette_pairs": 5}[name]
    assert planned_for(prepared).finetune.epochs > 0


def test_an_empty_folder_has_no_layout(tmp_path: Path) -> None:
    inspection = inspected(tmp_path)
    assert (inspection.layout, inspection.section, inspection.sheet) == (None, "", None)
    assert inspection.missing.startswith("no files with an image suffix")


def test_text_files_are_not_data(tmp_path: Path) -> None:
    for number in range(5):
        write(tmp_path / f"{number}.txt", "words\n")
        write(tmp_path / f"{number}.json", "{")
        write(tmp_path / f"{number}.xml", "<annotations><version>1.1")
    assert inspected(tmp_path).missing.startswith("no files with an image suffix")


def test_images_alone_are_not_enough(tmp_path: Path) -> None:
    fill(tmp_path, "street/{}.jpg", "")
    inspection = inspected(tmp_path)
    assert inspection.section == ""
    assert "images but no masks. That is enough only for pretraining" in inspection.missing
    assert inspection.sheet


def test_masks_without_images_are_reported(tmp_path: Path) -> None:
    for number in range(COUNT):
        write(tmp_path / f"{number}.png", encoded(STRIPES))
    assert "look like masks" in inspected(tmp_path).missing


def test_two_views_of_a_scene_are_not_treated_as_image_and_mask(tmp_path: Path) -> None:
    for number in range(COUNT):
        write(tmp_path / f"left/{number}.png", encoded(noise(9, 9, seed=number)))
        write(tmp_path / f"right/{number}.png", encoded(noise(9, 9, seed=-number % 999 + 1000)))
    assert inspected(tmp_path).layout is None


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    file = write(tmp_path / "images.png", encoded(STRIPES))
    with pytest.raises(UserError, match=r"images\.png: is a file; expected the data folder"):
        inspected(file)
    with pytest.raises(UserError, match="nowhere: is missing"):
        inspected(tmp_path / "nowhere")


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_an_unreadable_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(UserError, match="cannot be read"):
        inspected(tmp_path / "closed")


def test_strange_names_and_circular_links_do_no_harm(tmp_path: Path) -> None:
    fill(tmp_path, "images/{}.jpg", "masks/{}.png")
    (tmp_path / "images/again").symlink_to(tmp_path)
    (tmp_path / "images/lost.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "images/itself.jpg").symlink_to(tmp_path / "images/itself.jpg")
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/images/\xff.jpg"))).write_bytes(photo(0))
    write(tmp_path / "images/[a](b)+{c}$ä 語.jpg", photo(1))
    write(tmp_path / "images/line\nbreak.jpg", photo(1))
    inspection = inspected(tmp_path)
    assert sum(1 for item in samples(tmp_path, pasted(inspection)).values() if item.mask) == COUNT
    assert len(inspection.listing.problems) == 3
    assert {"images/lost.jpg", "images/itself.jpg"} <= {*inspection.image_facts.unusable}


def test_pattern_characters_in_names_are_escaped(tmp_path: Path) -> None:
    fill(tmp_path, "a.(b)+/images [1]/{}.jpg", "a.(b)+/masks [1]/{} (mask).png")
    assert len(samples(tmp_path, pasted(inspected(tmp_path)))) == COUNT


def test_files_that_break_decoders_are_reported_one_by_one() -> None:
    inspection = inspected(shared_data("awkward"))
    assert inspection.layout is None
    unusable = {Path(path).name for path in inspection.image_facts.unusable}
    assert {"zero_byte.png", "zero_byte.jpg", "text_named.png", "head_only_512B.jpg"} <= unusable
    assert "images have more than 100 megapixels by their headers" in remarks_of(inspection)
    assert "EXIF rotates" in remarks_of(inspection)


def test_a_size_that_only_a_header_claims_is_not_proposed(tmp_path: Path) -> None:
    fill(tmp_path, "images/{}.jpg", "masks/{}.png")
    write(tmp_path / "images/lies.png", png_claiming(60_000, 50_000))
    write(tmp_path / "images/lies_less.png", png_claiming(20_000, 20_000))
    inspection = inspected(tmp_path)
    assert inspection.prepare == {}
    assert "images/lies_less.png" in inspection.image_facts.unusable
    assert {*inspection.image_facts.sizes} == {f"images/{number:03}.jpg" for number in range(COUNT)}
    assert "3,000: images/lies.png" in remarks_of(inspection)
    assert "its header may be wrong" in remarks_of(inspection)


def test_the_size_of_a_decodable_large_image_is_proposed(tmp_path: Path) -> None:
    fill(tmp_path, "images/{}.jpg", "masks/{}.png")
    write(tmp_path / "images/lies.png", png_claiming(20_000, 20_000))
    write(tmp_path / "images/large.png", encoded(np.zeros((10_000, 10_100), np.uint8)))
    inspection = inspected(tmp_path)
    assert inspection.prepare["max_megapixels"][0] == 101
    assert "header may be wrong" not in remarks_of(inspection)


def test_masks_that_break_decoders_are_reported(tmp_path: Path) -> None:
    for number, path in enumerate(sorted(file for file in shared_data("awkward").rglob("*.*") if file.is_file())):
        write(tmp_path / f"images/{number}.png", photo(number))
        shutil.copyfile(path, tmp_path / f"masks{number}")
        (tmp_path / "masks").mkdir(exist_ok=True)
        (tmp_path / f"masks{number}").rename(tmp_path / f"masks/{number}.png")
    inspection = inspected(tmp_path)
    assert inspection.layout
    assert inspection.mask_facts.unusable
    assert pasted(inspection)


def test_object_masks_of_0_and_1_get_threshold_1(tmp_path: Path) -> None:
    for number in range(COUNT):
        write(tmp_path / f"images/cell{number:03}.jpg", photo(number))
        for one in range(2):
            write(tmp_path / f"masks/cell{number:03}_{one}.png", encoded((STRIPES == 1).astype(np.uint8)))
    source = pasted(inspected(tmp_path)).source
    assert (source.mask_kind, source.mask_threshold) == ("instances", 1)  # type: ignore[union-attr]
