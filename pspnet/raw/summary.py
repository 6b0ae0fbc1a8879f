"""Collect the counts, statistics and fingerprints of a dataset while its samples are written into shards."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pspnet.dataset.store.prepared import Channels, PreparedDataset
from pspnet.dataset.store.shards import Record, Shard
from pspnet.dataset.store.splits import SPLITS, Split
from pspnet.raw.classes import IGNORE, Classes
from pspnet.raw.problems import Outcome


class Summary:
    def __init__(self, classes: Classes) -> None:
        self._classes = classes
        self._images: Counter[Split] = Counter()
        self._masks: Counter[Split] = Counter()
        self._labeled: dict[Split, set[str]] = {split: set() for split in SPLITS}
        self._channel_sums = [0] * 7
        self._class_counts = {split: np.zeros(256, np.int64) for split in SPLITS}
        names = json.dumps(classes.names).encode() + b"\n"
        self._digests = {split: hashlib.sha256(names) for split in SPLITS}

    def add(self, record: Record, channel_sums: Sequence[int], class_counts: Mapping[int, int]) -> None:
        """`channel_sums` are the number of pixels, the sums of red, green and blue, and the sums of their squares."""
        split = record.split
        self._images[split] += 1
        self._digests[split].update(f"{record.sha256} {json.dumps(record.id)}\n".encode())
        if split in ("train", "unlabeled"):  # the statistics must not depend on val and test
            self._channel_sums = [a + b for a, b in zip(self._channel_sums, channel_sums, strict=True)]
        if record.mask is not None:
            self._masks[split] += 1
            self._labeled[split].add(record.group)
            for value, pixels in class_counts.items():
                self._class_counts[split][value] += pixels

    def dataset(self, folder: Path, shards: list[Shard], outcomes: Mapping[Outcome, int]) -> PreparedDataset:
        groups = {split: len(self._labeled[split]) for split in SPLITS}
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
            quarantined=outcomes["quarantined"],
            duplicates=outcomes["duplicate"],
            left_out=outcomes["left out"],
        )

    def _statistics(self) -> tuple[Channels, Channels]:
        """mean = sum(x) / n, std = sqrt(sum(x^2) / n - mean^2), over integers, so the order of images does not
        matter.
        """
        pixels, *sums = self._channel_sums
        means = np.array(sums, np.float64) / max(pixels, 1)
        mean, variance = means[:3], means[3:] - means[:3] ** 2
        std = np.maximum(np.sqrt(np.maximum(variance, 0)), 1)  # images are divided by this
        return _rounded(mean / 255), _rounded(std / 255)


def _rounded(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Channels:
    red, green, blue = (round(float(value), 6) for value in values)
    return red, green, blue
