"""Everything measured comes from one confusion matrix: rows are the masks' classes, columns the predictions'.

A class that neither the masks nor the predictions show has no IoU (NaN) and takes no part in a mean.
"""

import numpy as np
from numpy.typing import NDArray

Confusion = NDArray[np.int64]  # (K, K)


def confusion_matrix(mask: NDArray[np.uint8], prediction: NDArray[np.uint8], classes: int, ignore: int) -> Confusion:
    """Pixels counted by (class in the mask, class predicted); where the mask says `ignore`, nothing counts."""
    valid = mask != ignore
    pairs = mask[valid].astype(np.int64) * classes + prediction[valid]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def class_iou(confusion: Confusion) -> NDArray[np.float64]:
    """Pixels that both have, over pixels that either has, for each class."""
    both = np.diag(confusion).astype(np.float64)
    either = confusion.sum(axis=0) + confusion.sum(axis=1) - both
    iou: NDArray[np.float64] = np.divide(both, either, out=np.full(len(both), np.nan), where=either > 0)
    return iou


def mean_iou(confusion: Confusion) -> float:
    values = class_iou(confusion)
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def pixel_accuracy(confusion: Confusion) -> float:
    pixels = confusion.sum()
    return float(np.trace(confusion) / pixels) if pixels else float("nan")
