"""Compares the pixels of masks to find out what the masks show: a region of interest, annotators, or classes."""

from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from pspnet.inspection.facts import MAX_BYTES, MAX_PIXELS, stable_sample
from pspnet.raw.files import RawFiles
from pspnet.raw.images import Refused
from pspnet.raw.masks import levels_in

MOST_OPENED = 12
SMALL_PX = 64  # the size at which masks are compared
REGION = 0.9  # masks of different images with at least this intersection over union cover the same region
ANNOTATORS = 0.3  # two masks of one image with at least this intersection over union show the same thing
NEAR = 0.1  # as a share of the brightest value; a level this close to black or to the brightest value counts as equal


def is_region(masks: Iterable[str], files: RawFiles) -> bool:
    """Whether the masks of different images are nearly the same, as if they marked a camera's field of view."""
    opened = [small for path in stable_sample(masks, MOST_OPENED // 2) if (small := _bright(path, files)) is not None]
    overlaps = [_overlap(one, other) for one, other in combinations(opened, 2)]
    return len(opened) >= 3 and float(np.median(overlaps)) >= REGION


def are_annotators(masks: Sequence[Sequence[str]], files: RawFiles) -> bool:
    """Whether the masks of each image mostly overlap, as if several people had drawn the same thing."""
    overlaps = []
    for paths in masks[:MOST_OPENED]:
        opened = [small for path in paths if (small := _bright(path, files)) is not None and small.any()]
        overlaps += [_overlap(one, other) for one, other in combinations(opened, 2)]
    return bool(overlaps) and float(np.median(overlaps)) >= ANNOTATORS


def are_two_valued(masks: Iterable[str], files: RawFiles) -> bool:
    """Whether the masks contain only black and one bright value, except at blurred edges."""
    levels = [opened for path in stable_sample(masks, MOST_OPENED) if (opened := _levels(path, files)) is not None]
    highest = max((int(one.max()) for one in levels), default=0)
    if not highest:
        return False
    between = [((one > NEAR * highest) & (one < (1 - NEAR) * highest)).mean() for one in levels]
    return float(np.mean(between)) <= (0.1 if highest > 30 else 0)


def _levels(path: str, files: RawFiles) -> NDArray[np.uint8] | NDArray[np.uint16] | None:
    try:
        return levels_in(files.read(path, MAX_BYTES), MAX_PIXELS)
    except Refused:
        return None


def _bright(path: str, files: RawFiles) -> NDArray[np.bool_] | None:
    levels = _levels(path, files)
    if levels is None:
        return None
    rows, columns = (np.linspace(0, size - 1, SMALL_PX).astype(int) for size in levels.shape)
    return np.asarray(levels[rows][:, columns] > levels.max() // 2)


def _overlap(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    either = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / either if either else 0.0
