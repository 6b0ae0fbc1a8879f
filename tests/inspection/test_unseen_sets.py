"""`pspnet data inspect` on sets arranged like public sets. Each of these sets once led to a wrong
proposal or to none.
"""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from pspnet.config.dataset import DatasetParams
from pspnet.config.reading import parse_value, validate
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.inspection.findings import Inspection
from pspnet.inspection.inspecting import inspect_folder
from pspnet.raw.classes import declared_classes
from pspnet.raw.files import RawFiles
from pspnet.raw.layouts import LAYOUTS
from pspnet.raw.layouts.pairs import FoundImage
from pspnet.stages import prepare
from pspnet.tracking.run import StageRun
from tests.inspection import sets
from tests.parameters import demo_params
from tests.planning.laptop import planned_for
from tests.raw.rawdata import encoded, shared_data, write

ASKING = {
    "class_beside": ["class_folders", "folder"],
    "class_in_both": ["class_folders", "folder"],
    "two_annotators_and_a_region": ["folder", "folder", "folder"],
    "two_annotators_in_one_folder": ["folder", "folder"],
    "experts_in_folders": ["folder", "folder", "class_folders"],
    "region_beside": ["folder", "folder"],
    "two_modalities": ["folder", "folder"],
}
EVERY_READING = [(name, use) for name in sets.SETS for use in range(1, 1 + len(ASKING.get(name, ["one"])))]


def inspected(raw: Path, use: int | None = None) -> Inspection:
    return inspect_folder(raw, lambda *_: None, use=use)


def proposed(inspection: Inspection) -> DatasetParams:
    return validate(DatasetParams, parse_value(inspection.section, "printed")["dataset"], "printed")


def found_in(raw: Path, dataset: DatasetParams) -> dict[str, FoundImage]:
    items = LAYOUTS[dataset.source.layout].find(dataset.source, RawFiles(raw))
    return {item.image: item for item in items if isinstance(item, FoundImage) and not item.problem}


def remarks_of(inspection: Inspection) -> str:
    return "\n".join(f"{remark.found} {remark.advice}" for remark in inspection.remarks)


def prepared(raw: Path, inspection: Inspection, out: Path) -> PreparedDataset:
    """Prepare the set with the printed params."""
    own = {f"prepare__{key.replace('.', '__')}": value for key, (value, _) in inspection.prepare.items()}
    params = demo_params(**own, prepare__split_by="stratified", prepare__problems__duplicate="allow").prepare
    prepare.run(
        proposed(inspection), params, raw=raw, out=out, checkpoints=out.with_name("state"), run=StageRun(),
        tick=lambda *_: None,
    )  # fmt: skip
    return PreparedDataset.open(out)


@pytest.mark.parametrize("name", sets.SETS)
def test_inspect_asks_exactly_where_several_readings_are_possible(name: str, tmp_path: Path) -> None:
    inspection = inspected(sets.SETS[name](tmp_path / "raw"))
    assert [choice.layout and choice.layout.layout for choice in inspection.choices] == ASKING.get(name, [])
    assert bool(inspection.section) is (name not in ASKING)
    assert all(choice.sheet for choice in inspection.choices)


@pytest.mark.parametrize(("name", "use"), EVERY_READING)
def test_prepare_reads_every_reading_and_no_mask_is_an_unlabeled_image(name: str, use: int, tmp_path: Path) -> None:
    raw = sets.SETS[name](tmp_path / "raw")
    inspection = inspected(raw, use)
    assert inspection.sheet
    dataset = prepared(raw, inspection, tmp_path / "prepared")
    assert not dataset.quarantined
    assert sum(dataset.images.values()) == len(inspection.images)
    assert planned_for(dataset).finetune.batch_size <= max(2, dataset.masks["train"])
    unlabeled = [path for path, item in found_in(raw, proposed(inspection)).items() if not item.mask]
    assert [path for path in unlabeled if not path.startswith("stage1_test/")] == []


@pytest.mark.parametrize("name", ASKING)
def test_the_number_of_a_reading_is_stable(name: str, tmp_path: Path) -> None:
    raw = sets.SETS[name](tmp_path / "raw")
    first = inspected(raw)
    assert first.readings == inspected(raw).readings
    for choice in first.choices:
        assert inspected(raw, choice.number).layout == choice.layout


def test_object_masks_in_one_folder_per_image_are_merged(tmp_path: Path) -> None:
    raw = sets.folder_per_image(tmp_path)
    inspection = inspected(raw)
    counts = [len(item.mask.paths) for item in inspection.images if item.mask]
    assert Counter(counts) == {1: 4, 2: 4, 3: 4}
    assert len(inspection.images) - len(inspection.labeled) == 3, "images of stage1_test have no masks"
    assert proposed(inspection).classes == {"background": 0, "object": 1}


def test_images_and_masks_in_one_folder_are_distinguished_by_their_names(tmp_path: Path) -> None:
    found = found_in(tmp_path, proposed(inspected(sets.same_names_in_folders(tmp_path))))
    assert {(path, item.id, item.mask and item.mask.path) for path, item in found.items()} == {
        (f"case{n:02}/image.png", f"case{n:02}", f"case{n:02}/label.png") for n in range(sets.COUNT)
    }


def test_the_folder_name_is_the_class_and_second_masks_are_merged(tmp_path: Path) -> None:
    raw = sets.class_beside(tmp_path)
    dataset = proposed(inspected(raw, 1))
    files = RawFiles(raw)
    classes = declared_classes(dataset, raw, LAYOUTS["class_folders"].classes(dataset.source, files))
    assert classes.names == ("background", "benign", "malignant")
    found = found_in(raw, dataset)
    merged = found["benign/benign (3).png"].mask
    assert merged and merged.paths == ("benign/benign (3)_mask.png", "benign/benign (3)_mask_1.png")
    both = np.maximum(sets.blob(3), sets.blob(53)) // 255
    assert np.array_equal(merged.values(files, 10**6, 10**6), both)
    normal = found["normal/normal (1).png"].mask
    assert normal and not normal.values(files, 10**6, 10**6).any()


def test_numbered_folders_and_masks_of_many_values_are_not_classes(tmp_path: Path) -> None:
    assert not inspected(sets.scenes_in_both(tmp_path / "scenes")).choices
    raw = sets.class_in_both(tmp_path / "numbers")
    for path in raw.glob("masks/*/*.png"):
        write(path, encoded(sets.numbers(0, 4)))
    assert not inspected(raw).choices


def test_camvid_with_color_masks_is_recognized_and_void_is_ignored(tmp_path: Path) -> None:
    inspection = inspected(sets.glued_camvid(tmp_path))
    assert inspection.layout and inspection.layout.layout == "camvid"
    assert inspection.class_name(sets.VOID) == "(ignored)"
    assert Counter(item.split for item in inspection.labeled) == dict.fromkeys(("train", "val", "test"), sets.COUNT)


def test_a_value_that_a_table_calls_void_is_ignored(tmp_path: Path) -> None:
    dataset = proposed(inspected(sets.colored_camvid(tmp_path)))
    assert dataset.ignore_values == ["#000000"]
    assert dataset.classes == {"Road": "#804080", "Tree": "#808000", "Sky": "#808080"}, "Tree is in the table only"


def test_a_region_comes_after_the_masks_and_is_told(tmp_path: Path) -> None:
    for name in ("region_beside", "two_annotators_and_a_region"):
        inspection = inspected(sets.SETS[name](tmp_path / name))
        notes = [reading.note for reading in inspection.readings]
        assert "nearly the same in every image" in notes[-1]
        assert not any(notes[:-1])


@pytest.mark.parametrize("name", ["foreign_voc", "foreign_cityscapes"])
def test_fixed_class_names_are_not_given_to_other_peoples_classes(name: str, tmp_path: Path) -> None:
    raw = sets.SETS[name](tmp_path)
    inspection = inspected(raw)
    assert proposed(inspection).classes == {"class_0": 0, "class_1": 1, "class_2": 2}
    assert [inspection.class_name(value) for value in range(3)] == ["class_0", "class_1", "class_2"]
    assert re.search("the folders are those of .*, but .* is not one of its images", remarks_of(inspection))
    write(raw / "labels.txt", "background\nseam\npore\n")
    named = inspected(raw)
    assert proposed(named).classes == {"background": 0, "seam": 1, "pore": 2}
    assert "take their names from labels.txt" in remarks_of(named)


def test_vocs_own_images_keep_vocs_names() -> None:
    inspection = inspected(shared_data("layouts/tiny_voc_dataset1"))
    assert proposed(inspection).classes == {}
    assert "the folders are those of" not in remarks_of(inspection)


@pytest.mark.parametrize(("name", "values"), [("twin_palette", [254, 255]), ("nearly_white", [253, 254, 255])])
def test_values_close_to_255_are_one_class(name: str, values: list[int], tmp_path: Path) -> None:
    inspection = inspected(sets.SETS[name](tmp_path))
    assert proposed(inspection).classes == {"class_0": 0, "class_255": values}
    assert "they probably mean the same" in remarks_of(inspection)
    assert {inspection.class_name(value) for value in values} == {"class_255"}


def test_a_value_next_to_255_is_ignored_with_it(tmp_path: Path) -> None:
    for number in range(sets.COUNT):
        pixels = sets.numbers(number, 3)
        pixels[0], pixels[1] = 254, 255
        write(tmp_path / f"images/{number}.png", sets.photo(number))
        write(tmp_path / f"masks/{number}.png", encoded(pixels))
    dataset = proposed(inspected(tmp_path))
    assert (dataset.classes, dataset.ignore_values) == ({f"class_{n}": n for n in range(3)}, [254, 255])


def test_the_table_of_levels_names_values_by_the_threshold(tmp_path: Path) -> None:
    inspection = inspected(sets.blurred(tmp_path))
    assert [inspection.class_name(value) for value in (0, 1, 127, 128, 255)] == ["background"] * 3 + ["object"] * 2


def test_a_group_pattern_that_misses_the_shares_is_reported(tmp_path: Path) -> None:
    inspection = inspected(sets.uneven_patients(tmp_path))
    assert proposed(inspection).group_pattern == "(.*)/[^/]+$"
    expected = r"puts 20 of 70 masks into train, 8 into val \(15% requested\), 42 into test \(20% requested\)"
    assert re.search(expected, remarks_of(inspection))
    assert "prepare.split_by: stratified" in remarks_of(inspection)


def test_shares_that_are_met_are_not_reported(tmp_path: Path) -> None:
    assert "requested" not in remarks_of(inspected(sets.plain(tmp_path, count=99)))


NAMES = [f"{number:02}" for number in range(sets.COUNT)]
PARTS = {"train": NAMES[:8], "val": NAMES[8:10], "test": NAMES[10:]}
PATHS = {split: [f"images/{name}.jpg" for name in names] for split, names in PARTS.items()}
TABLE = [{"image": f"{name}.jpg", "split": split} for split, names in PARTS.items() for name in names]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("split.yaml", yaml.safe_dump(PARTS)),
        ("split.yml", yaml.safe_dump({"splits": PATHS})),
        ("meta/splits.json", json.dumps(PARTS)),
        ("meta.csv", "\n".join(["split,image", *(f"{row['split']},{row['image']}" for row in TABLE)])),
        ("meta.tsv", "\n".join(["image\tsplit", *(f"{row['image']}\t{row['split']}" for row in TABLE)])),
    ],
)  # fmt: skip
def test_a_file_of_official_splits_is_mentioned(file: str, text: str, tmp_path: Path) -> None:
    write(sets.plain(tmp_path) / file, text)
    told = f"lists that may be official splits: {file} (2 in test, 8 in train, 2 in val; 12 of 12 names are images)"
    assert told in remarks_of(inspected(tmp_path))


def test_lists_named_after_splits_are_mentioned(tmp_path: Path) -> None:
    sets.plain(tmp_path)
    write(tmp_path / "train_list.txt", "\n".join(f"images/{name}.jpg masks/{name}.png" for name in PARTS["train"]))
    write(tmp_path / "list_val.csv", "\n".join(f"{name},1" for name in PARTS["val"]))
    write(tmp_path / "notes.txt", "train the network on 00 and 01\n")
    [remark] = [one for one in inspected(tmp_path).remarks if "lists that may be" in one.found]
    assert "train_list.txt (8 in train; 8 of 8 names are images)" in remark.found
    assert "list_val.csv (2 in val; 2 of 2 names are images)" in remark.found
    assert "notes.txt" not in remark.found


def test_a_folder_that_contains_everything_is_written_as_a_dot(tmp_path: Path) -> None:
    section = inspected(sets.pairs_by_suffix(tmp_path)).section
    assert "images: .\n" in section
    assert "masks: .\n" in section


def test_a_count_of_one_is_not_plural(tmp_path: Path) -> None:
    text = remarks_of(inspected(sets.plain(tmp_path, count=1)))
    assert "there are only 1 mask" in text or "of 1 mask " in text
    assert not re.search(r"\b1 (masks|images|groups|files)\b", text)


def test_other_files_that_would_stop_prepare_are_reported(tmp_path: Path) -> None:
    inspection = inspected(sets.two_annotators_and_a_region(tmp_path), 1)
    assert "neither an image nor a mask under these params: 36 files" in remarks_of(inspection)
    assert "  problems:\n    not_an_image: allow" in inspection.section


def test_unnamed_masks_are_not_treated_as_images(tmp_path: Path) -> None:
    raw = sets.plain(tmp_path)
    for number in range(sets.COUNT):
        for folder in ("second", "third", "fourth"):
            write(raw / f"{folder}/{number:02}.png", encoded(sets.blob(number)))
        write(raw / f"more/{number:02}.png", sets.photo(300 + number))
    inspection = inspected(raw, 1)
    unlabeled = {path.split("/")[0] for path, item in found_in(raw, proposed(inspection)).items() if not item.mask}
    assert unlabeled == {"more"}


def test_masks_as_run_lengths_are_reported(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"train_images/{number}.jpg", sets.photo(number, "JPEG"))
    write(tmp_path / "train.csv", "ImageId,ClassId,EncodedPixels\n0.jpg,1,10 5 30 5\n")
    expected = "images, and train.csv with masks as run lengths, which no layout reads: save the masks as PNG files"
    assert inspected(tmp_path).missing == expected
