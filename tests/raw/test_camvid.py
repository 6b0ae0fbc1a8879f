"""CamVid: a few drives, filmed frame by frame."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pspnet.raw.classes import IGNORE
from pspnet.raw.files import RawFiles
from pspnet.raw.grouping import grouped
from pspnet.raw.layouts import LAYOUTS
from pspnet.raw.sample import RawSample
from pspnet.raw.splitting import assign_splits
from tests.parameters import demo_params
from tests.raw.found_images import classes_of, found, params, prepared
from tests.raw.rawdata import encoded, noise, shared_data, write

CAMVID = {"layout": "camvid", "images": "images", "masks": "masks"}
TUTORIAL = {"layout": "camvid", "images": ".", "masks": "."}


def samples_of(raw: Path, **changes: Any) -> list[RawSample]:
    dataset = params(CAMVID, **{"group_pattern": None, **changes})
    items = LAYOUTS["camvid"].find(dataset.source, RawFiles(raw))
    return [item for item in grouped(items, dataset.group_pattern, raw) if isinstance(item, RawSample)]


def test_the_real_frames_have_their_official_splits_and_their_drive_as_group() -> None:
    raw = shared_data("camvid")
    samples, problems = found(raw, params(CAMVID))
    assert not problems
    assert Counter((sample.split, sample.group) for sample in samples.values()) == {
        ("train", "0001TP"): 62, ("train", "0006R0"): 101, ("train", "0016E5"): 204, ("val", "0016E5"): 101,
    }  # fmt: skip


def test_real_masks_are_11_classes_in_official_colors_and_void() -> None:
    raw = shared_data("camvid")
    dataset = params(CAMVID)
    classes = classes_of(raw, dataset)
    assert (len(classes.names), classes.names[0], classes.names[-1]) == (11, "Sky", "Bicyclist")
    assert classes.colors[classes.names.index("Road")] == (128, 64, 128)
    values = np.asarray(Image.open(raw / "masks/train/0001TP_006690.png"))
    mask = prepared(raw, dataset, found(raw, dataset)[0]["0001TP_006690"])
    assert np.array_equal(mask, np.where(values == 11, IGNORE, values))


def test_without_a_pattern_no_drive_is_divided_between_splits() -> None:
    samples = samples_of(shared_data("camvid"))
    splits, _ = assign_splits(samples, demo_params(prepare__official_splits="ignored").prepare)
    assert splits.keys() == {"0001TP", "0006R0", "0016E5"}
    _, reported = assign_splits(samples, demo_params().prepare)
    # The official splits divide one drive between two splits.
    assert [one.problem.where for one in reported] == ["group '0016E5'"]


def test_a_group_pattern_overrides_the_drive() -> None:
    samples = samples_of(shared_data("camvid"), group_pattern=r"(\w+_\d{3})")
    groups = {sample.group for sample in samples if sample.id.startswith("0001TP")}
    assert groups == {"0001TP_006", "0001TP_007", "0001TP_008"}


def test_without_groups_in_the_layout_each_image_is_its_own_group(tmp_path: Path) -> None:
    for name in ("a/1", "a/2"):
        write(tmp_path / f"images/{name}.jpg", encoded(noise(4, 4), "JPEG"))
        write(tmp_path / f"annotations/{name}.png", encoded(np.ones((4, 4), np.uint8)))
    source = params({"layout": "ade20k", "images": "images", "masks": "annotations"}).source
    items = list(grouped(LAYOUTS["ade20k"].find(source, RawFiles(tmp_path)), None, tmp_path))
    assert [item.group for item in items if isinstance(item, RawSample)] == ["a/1", "a/2"]


def test_the_folders_of_segnets_tutorial_are_read(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        for name in (f"CamVid/{split}/Seq05VD_f0{len(split)}.png", f"CamVid/{split}annot/Seq05VD_f0{len(split)}.png"):
            write(tmp_path / name, encoded(np.full((2, 2), 11 if "annot" in name else 200, np.uint8)))
        write(tmp_path / f"CamVid/{split}.txt", "")
    (tmp_path / "CamVid/test/Seq05VD_f04.png").rename(tmp_path / "CamVid/test/Seq05VD_f06.png")
    (tmp_path / "CamVid/testannot/Seq05VD_f04.png").rename(tmp_path / "CamVid/testannot/Seq05VD_f06.png")
    dataset = params(TUTORIAL)
    samples, problems = found(tmp_path, dataset)
    assert {name: (sample.split, sample.group) for name, sample in samples.items()} == {
        "Seq05VD_f03": ("val", "Seq05VD"),
        "Seq05VD_f05": ("train", "Seq05VD"),
        "Seq05VD_f06": ("test", "Seq05VD"),
    }
    assert not problems
    assert np.array_equal(prepared(tmp_path, dataset, samples["Seq05VD_f06"]), np.full((2, 2), IGNORE))


def test_a_frame_without_a_drive_in_its_name_is_reported(tmp_path: Path) -> None:
    write(tmp_path / "images/0001TP_1.jpg", encoded(noise(4, 4), "JPEG"))
    write(tmp_path / "masks/0001TP_1.png", encoded(np.ones((4, 4), np.uint8)))
    write(tmp_path / "images/holiday.jpg", encoded(noise(4, 4), "JPEG"))
    [problem] = found(tmp_path, params(CAMVID))[1]
    assert (problem.where, problem.found) == ("images/holiday.jpg", "does not have the name of an image or a mask")
