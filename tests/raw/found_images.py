"""The images that a layout finds in a folder, and their masks as the pipeline sees them."""

from pathlib import Path
from typing import Any

import numpy as np

from pspnet.config.dataset import DatasetParams
from pspnet.dataset.store.pixels import decode_mask
from pspnet.errors import Problem
from pspnet.raw.classes import Classes, declared_classes
from pspnet.raw.files import RawFiles
from pspnet.raw.layouts import LAYOUTS
from pspnet.raw.layouts.pairs import FoundImage
from pspnet.raw.sample import RawSample
from pspnet.raw.validation import CheckedSample, check
from tests.raw.rawdata import dataset_params, rules


def params(source: dict[str, Any], **changes: Any) -> DatasetParams:
    return dataset_params(**{"source": source, "classes": {}, "ignore_values": [], "group_pattern": "(.*)", **changes})


def found(raw: Path, dataset: DatasetParams) -> tuple[dict[str, FoundImage], list[Problem]]:
    items = list(LAYOUTS[dataset.source.layout].find(dataset.source, RawFiles(raw)))
    samples = {item.id: item for item in items if isinstance(item, FoundImage) and not item.problem}
    reported = [item if isinstance(item, Problem) else item.problem for item in items if item not in samples.values()]
    return samples, [problem for problem in reported if problem]


def classes_of(raw: Path, dataset: DatasetParams) -> Classes:
    own = LAYOUTS[dataset.source.layout].classes(dataset.source, RawFiles(raw))
    return declared_classes(dataset, raw, own)


def prepared(raw: Path, dataset: DatasetParams, found: FoundImage) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    checked = outcome(raw, dataset, found)
    assert checked.mask, checked.verdicts
    return decode_mask(checked.mask)


def outcome(raw: Path, dataset: DatasetParams, found: FoundImage) -> CheckedSample:
    files = RawFiles(raw)
    list(LAYOUTS[dataset.source.layout].find(dataset.source, files))  # this opens the archives in the raw data
    sample = RawSample(found.id, found.image, found.mask, "group", found.split)
    return check(sample, files=files, rules=rules(classes_of(raw, dataset), 10**7, empty_mask="allow"))
