"""What a layout finds in a folder, and its masks as the pipeline sees them."""

from pathlib import Path
from typing import Any

import numpy as np

from pspnet.config.dataset import DatasetParams
from pspnet.dataset.adapters import LAYOUTS
from pspnet.dataset.adapters.pairs import Found
from pspnet.dataset.classes import Classes, declared_classes
from pspnet.dataset.images import decode_mask
from pspnet.dataset.raw import RawFiles
from pspnet.dataset.raw_samples import RawSample
from pspnet.dataset.validation import Checked, check
from pspnet.errors import Problem
from tests.dataset.rawdata import dataset_params, rules


def params(source: dict[str, Any], **changes: Any) -> DatasetParams:
    return dataset_params(**{"source": source, "classes": {}, "ignore_values": [], "group_pattern": "(.*)", **changes})


def found(raw: Path, dataset: DatasetParams) -> tuple[dict[str, Found], list[Problem]]:
    items = list(LAYOUTS[dataset.source.layout].find(dataset.source, RawFiles(raw)))
    samples = {item.id: item for item in items if isinstance(item, Found) and not item.problem}
    told = [item if isinstance(item, Problem) else item.problem for item in items if item not in samples.values()]
    return samples, [problem for problem in told if problem]


def classes_of(raw: Path, dataset: DatasetParams) -> Classes:
    own = LAYOUTS[dataset.source.layout].classes(dataset.source, RawFiles(raw))
    return declared_classes(dataset, raw, own)


def prepared(raw: Path, dataset: DatasetParams, found: Found) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    checked = outcome(raw, dataset, found)
    assert checked.mask, checked.told
    return decode_mask(checked.mask)


def outcome(raw: Path, dataset: DatasetParams, found: Found) -> Checked:
    files = RawFiles(raw)
    list(LAYOUTS[dataset.source.layout].find(dataset.source, files))  # it now knows its archives
    sample = RawSample(found.id, found.image, found.mask, "group", found.split)
    return check(sample, files=files, rules=rules(classes_of(raw, dataset), 10**7, empty_mask="allow"))
