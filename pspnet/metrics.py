"""Everything measured comes from one confusion matrix: rows are the masks' classes, columns the predictions'.

A class that neither the masks nor the predictions show has no IoU (NaN) and takes no part in a mean.
"""

import numpy as np
from numpy.typing import NDArray

Confusion = NDArray[np.int64]  # (K, K)
Counts = NDArray[np.int64] | NDArray[np.float64]  # (..., K)


def confusion_matrix(mask: NDArray[np.uint8], prediction: NDArray[np.uint8], classes: int, ignore: int) -> Confusion:
    """Pixels counted by (class in the mask, class predicted); where the mask says `ignore`, nothing counts."""
    valid = mask != ignore
    pairs = mask[valid].astype(np.int64) * classes + prediction[valid]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def intersection_and_union(confusion: Confusion) -> tuple[Counts, Counts]:
    """Pixels that both have, and pixels that either has, for each class. Those of several images may be added up."""
    both = np.diag(confusion).copy()  # a view would keep the whole matrix alive
    return both, confusion.sum(axis=0) + confusion.sum(axis=1) - both


def iou(intersection: Counts, union: Counts) -> NDArray[np.float64]:
    values: NDArray[np.float64] = np.divide(intersection, union, out=np.full(union.shape, np.nan), where=union > 0)
    return values


def mean_over_classes(ious: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., K) -> (...)"""
    known = ~np.isnan(ious)
    counts = known.sum(axis=-1)
    sums = np.where(known, ious, 0).sum(axis=-1)
    means: NDArray[np.float64] = np.divide(sums, counts, out=np.full(counts.shape, np.nan), where=counts > 0)
    return means


def class_iou(confusion: Confusion) -> NDArray[np.float64]:
    return iou(*intersection_and_union(confusion))


def mean_iou(confusion: Confusion) -> float:
    return float(mean_over_classes(class_iou(confusion)))


def pixel_accuracy(confusion: Confusion) -> float:
    pixels = confusion.sum()
    return float(np.trace(confusion) / pixels) if pixels else float("nan")
