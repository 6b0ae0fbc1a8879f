"""All metrics are computed from one confusion matrix. Rows are classes in the masks, columns are predicted classes.

A class that appears neither in the masks nor in the predictions has no IoU (NaN) and is left out of means.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

Confusion = NDArray[np.int64]  # (K, K)
COUNTED_AT_ONCE = 2**24  # pixels; OpenCV counts in float32, which is exact up to this number
NOTHING_IGNORED = 256  # not a possible mask value
Counts = NDArray[np.int64] | NDArray[np.float64]  # (..., K)


def confusion_matrix(mask: NDArray[np.uint8], prediction: NDArray[np.uint8], classes: int, ignore: int) -> Confusion:
    """Count the pixels for each pair (class in the mask, predicted class), except where the mask is `ignore`."""
    total = np.zeros((classes, classes), np.int64)
    pairs = (mask.reshape(-1), prediction.reshape(-1))
    for start in range(0, mask.size, COUNTED_AT_ONCE):
        parts = [_interleaved(pixels[start : start + COUNTED_AT_ONCE]) for pixels in pairs]
        total += cv2.calcHist(parts, [0, 1], None, [classes, classes], [0, classes, 0, classes]).astype(np.int64)
    if ignore < classes:
        total[ignore] = 0
    if (lost := np.count_nonzero(mask != ignore) - total.sum()) != 0:
        raise ValueError(f"{lost} pixels have a value that is not one of the {classes} classes")
    return total


def _interleaved(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Interleave pixels from distant places. In a run of equal pixels, each count would wait for the previous write."""
    whole = len(pixels) - len(pixels) % 4
    if not whole:
        return pixels
    return np.concatenate([cv2.merge(list(pixels[:whole].reshape(4, -1))).reshape(-1), pixels[whole:]])


def intersection_and_union(confusion: Confusion) -> tuple[Counts, Counts]:
    """For each class, count the pixels that are in both the mask and the prediction, and in at least one of them.

    The counts can be summed over images.
    """
    both = np.diag(confusion).copy()  # a view would keep the whole matrix alive
    return both, confusion.sum(axis=0) + confusion.sum(axis=1) - both


def iou(intersection: Counts, union: Counts) -> NDArray[np.float64]:
    values: NDArray[np.float64] = np.divide(intersection, union, out=np.full(union.shape, np.nan), where=union > 0)
    return values


def mean_over_classes(ious: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average the IoUs over the classes that have one: (..., K) -> (...)."""
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
