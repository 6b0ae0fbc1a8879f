"""Evaluates a predictor on annotated images: computes one confusion matrix and a row per image."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pspnet.dataset.annotated import Annotated
from pspnet.metrics import Confusion, confusion_matrix, intersection_and_union, iou, mean_iou, pixel_accuracy
from pspnet.prediction.image.predictor import Prediction

BATCH_PIXELS = 2**19  # number of pixels to predict at a time: many small images, or a single large one


class Predicts(Protocol):
    """A Predictor, or a client of a served version."""

    def predict(self, images: NDArray[np.uint8]) -> list[Prediction]:
        """Predict images of the same size, (N, H, W, 3)."""


def measure(
    predictor: Predicts,
    samples: Iterable[Annotated],
    classes: tuple[str, ...],
    ignore: int,
    tick: Callable[[int], None],
) -> tuple[Confusion, pd.DataFrame]:
    """Return the confusion matrix and a table with a row per image.

    Only counts are kept in memory. `tick` is called with the number of images evaluated so far.
    """
    total = np.zeros((len(classes), len(classes)), np.int64)
    rows, counts = [], []
    for sample, prediction in predict_all(predictor, samples):
        confusion = confusion_matrix(sample.mask, prediction.mask, len(classes), ignore)
        total += confusion
        rows.append(
            {
                "id": sample.id,
                "group": sample.group,
                "pixels": int(confusion.sum()),
                "pixel_accuracy": pixel_accuracy(confusion),
                "mean_iou": mean_iou(confusion),
            }
        )
        counts.append(intersection_and_union(confusion))
        tick(len(rows))
    intersection, union = np.moveaxis(np.array(counts, np.int64).reshape(-1, 2, len(classes)), 1, 0)
    columns = {"iou": iou(intersection, union), "intersection": intersection, "union": union}
    of_classes = [
        pd.DataFrame(values, columns=[f"{prefix}_{name}" for name in classes]) for prefix, values in columns.items()
    ]
    return total, pd.concat([pd.DataFrame(rows), *of_classes], axis=1)


def predict_all(predictor: Predicts, samples: Iterable[Annotated]) -> Iterator[tuple[Annotated, Prediction]]:
    """Yield each sample with its prediction, in order.

    Consecutive images of the same size share one pass through the network.
    """
    batch: list[Annotated] = []
    for sample in samples:
        height, width = sample.mask.shape
        full = (len(batch) + 1) * height * width > BATCH_PIXELS
        if batch and (full or sample.mask.shape != batch[0].mask.shape):
            yield from _predict_batch(predictor, batch)
            batch = []
        batch.append(sample)
    if batch:
        yield from _predict_batch(predictor, batch)


def _predict_batch(predictor: Predicts, batch: list[Annotated]) -> Iterator[tuple[Annotated, Prediction]]:
    return zip(batch, predictor.predict(np.stack([sample.image for sample in batch])), strict=True)
