"""What is counted while samples pass by on their way into shards."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np

from pspnet.dataset.classes import IGNORE, Classes
from pspnet.dataset.prepared import Channels, PreparedDataset
from pspnet.dataset.samples import SPLITS, Split
from pspnet.dataset.shards import Shard
from pspnet.dataset.validation import Checked
from pspnet.errors import Problem


class Summary:
    def __init__(self, classes: Classes) -> None:
        self._classes = classes
        self._images: Counter[Split] = Counter()
        self._masks: Counter[Split] = Counter()
        self._labelled: dict[Split, set[str]] = {split: set() for split in SPLITS}
        self._channels = np.zeros((3, 256), np.int64)
        self._class_counts = {split: np.zeros(256, np.int64) for split in SPLITS}
        names = json.dumps(classes.names).encode() + b"\n"
        self._digests = {split: hashlib.sha256(names) for split in SPLITS}

    def add(self, checked: Checked) -> None:
        record = checked.record
        split = record.split
        self._images[split] += 1
        self._digests[split].update(f"{record.sha256} {json.dumps(record.id)}\n".encode())
        if split in ("train", "unlabeled"):  # what val and test look like stays unknown
            self._channels += checked.channel_counts
        if checked.class_counts is not None:
            self._masks[split] += 1
            self._labelled[split].add(record.group)
            self._class_counts[split] += checked.class_counts

    def dataset(self, folder: Path, shards: list[Shard], refused: list[Problem]) -> PreparedDataset:
        groups = {split: len(self._labelled[split]) for split in SPLITS}
        fingerprints = {split: self._digests[split].hexdigest() for split in SPLITS}
        mean, std = self._statistics()
        known = len(self._classes.names)
        return PreparedDataset(
            folder=folder,
            classes=self._classes.names,
            colors=self._classes.colors,
            ignore=IGNORE,
            mean=mean,
            std=std,
            images={split: self._images[split] for split in SPLITS},
            masks={split: self._masks[split] for split in SPLITS},
            groups=groups,
            class_pixels={split: self._class_counts[split][:known].tolist() for split in SPLITS},
            ignored_pixels={split: int(self._class_counts[split][IGNORE]) for split in SPLITS},
            fingerprint=hashlib.sha256(json.dumps(fingerprints, sort_keys=True).encode()).hexdigest(),
            fingerprints=fingerprints,
            shards=tuple(shards),
            refused=tuple((problem.where, _reason(problem)) for problem in refused),
        )

    def _statistics(self) -> tuple[Channels, Channels]:
        """mean = sum(x) / n, std = sqrt(sum(x^2) / n - mean^2), from whole numbers: the order adds nothing."""
        values = np.arange(256)
        pixels = self._channels.sum(axis=1)
        mean = self._channels @ values / pixels
        variance = self._channels @ values**2 / pixels - mean**2
        std = np.maximum(np.sqrt(np.maximum(variance, 0)), 1)  # images get divided by it
        return _rounded(mean / 255), _rounded(std / 255)


def _rounded(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Channels:
    red, green, blue = (round(float(value), 6) for value in values)
    return red, green, blue


def _reason(problem: Problem) -> str:
    return str(problem).removeprefix(f"{problem.where}: ")
