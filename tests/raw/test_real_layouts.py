"""Every real layout available is prepared, or rejected with a reason."""

import re
from typing import Any

import pytest

from pspnet.errors import UserError
from tests.raw.found_images import found, outcome, params
from tests.raw.rawdata import shared_data
from tests.raw.test_coco import COCO, PANOPTIC
from tests.raw.test_cvat import CVAT
from tests.raw.test_labelme import LABELME
from tests.raw.test_layouts import ADE20K, CITYSCAPES, PALETTE_PAIRS, VOC

FULL_ADE20K = r"_seg\.png: belongs to the full ADE20K.*expected scene parsing, with 150 classes"
# Folder -> source, number of masks, problems of the other files.
PREPARED: dict[str, tuple[dict[str, Any], int, list[str]]] = {
    "ade20k/sampleData": (ADE20K, 3, []),
    "cityscapes": (CITYSCAPES, 1, []),
    "coco_instances": (COCO | {"images": "JPEGImages", "annotations": "annotations.json"}, 3, []),
    "coco_panoptic/sample_data": (
        PANOPTIC | {"images": "input_images", "masks": "panoptic_examples", "annotations": "panoptic_examples.json"},
        2,
        [],
    ),
    "labelme_instances": (LABELME, 3, []),
    "labelme_voc": (LABELME | {"images": "data_annotated", "annotations": r"data_annotated/.*\.json"}, 3, []),
    "labelme_voc/data_dataset_voc": (VOC, 3, []),
    "palette_pairs": (PALETTE_PAIRS, 5, []),
    "tiny_cityscapes_dataset/train_dataset": (
        CITYSCAPES | {"labels": "labelTrainIds"},
        0,
        ["has value 19"] * 4,  # these masks contain numbers beyond the 19 official classes
    ),
    "tiny_coco_instances": (COCO, 1, ["annotation 1 has no segmentation"]),
    "tiny_for_images/export_project": (CVAT, 6, []),
    "tiny_for_images/export_task": (CVAT, 0, ["has label ''", "has label ''"]),
    "tiny_voc_dataset1": (VOC, 1, []),
}
REFUSED = {
    "tiny_ade20k2020_dataset/dataset": (ADE20K, FULL_ADE20K),
    "tiny_ade20k2020_dataset/dataset_with_meta_file": (ADE20K | {"images": "."}, FULL_ADE20K),
    "tiny_cityscapes_dataset/dataset": (CITYSCAPES, r"gtFine: has no mask; expected names that match .*labelIds"),
    "coco_panoptic/sample_data": (COCO | {"images": "input_images", "annotations": "images.*"}, r"no list of objects"),
}


@pytest.mark.parametrize("folder", PREPARED)
def test_a_real_layout_is_prepared_and_each_unusable_file_is_reported(folder: str) -> None:
    raw = shared_data("layouts") / folder
    source, masks, reported = PREPARED[folder]
    dataset = params(source, **({"classes": {f"class{n}": n for n in range(8)}} if folder == "palette_pairs" else {}))
    samples, problems = found(raw, dataset)
    checked = [outcome(raw, dataset, sample) for sample in samples.values() if sample.mask]
    assert sum(one.mask is not None for one in checked) == masks
    problems += [reported.problem for one in checked for reported in one.verdicts if reported.outcome == "quarantined"]
    assert len(problems) == len(reported)
    for problem, text in zip(problems, reported, strict=True):
        assert text in problem.found


@pytest.mark.parametrize("folder", REFUSED)
def test_a_real_layout_of_a_different_kind_is_refused(folder: str) -> None:
    source, message = REFUSED[folder]
    with pytest.raises(UserError) as error:
        found(shared_data("layouts") / folder, params(source))
    assert re.search(message, str(error.value))


def test_every_real_layout_is_tested() -> None:
    reported = {folder.split("/")[0] for folder in [*PREPARED, *REFUSED]}
    assert {path.name for path in shared_data("layouts").iterdir()} <= reported
