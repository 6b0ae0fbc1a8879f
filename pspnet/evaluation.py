"""A predictor over annotated images -> one confusion matrix and a row per image."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pandas as pd

from pspnet.dataset.annotated import Annotated
from pspnet.metrics import Confusion, class_iou, confusion_matrix, mean_iou, pixel_accuracy
from pspnet.prediction import Prediction, Predictor

BATCH_PIXELS = 2**19  # of the images predicted at once: many small ones, or a single large one


def measure(
    predictor: Predictor,
    samples: Iterable[Annotated],
    classes: tuple[str, ...],
    ignore: int,
    tick: Callable[[int], None],
) -> tuple[Confusion, pd.DataFrame]:
    """Nothing is kept but counts, however many images there are. `tick` is told the number of images done."""
    total = np.zeros((len(classes), len(classes)), np.int64)
    rows = []
    for sample, prediction in predict_all(predictor, samples):
        confusion = confusion_matrix(sample.mask, prediction.mask, len(classes), ignore)
        total += confusion
        ious = {f"iou_{name}": value for name, value in zip(classes, class_iou(confusion), strict=True)}
        rows.append(
            {
                "id": sample.id,
                "group": sample.group,
                "pixels": int(confusion.sum()),
                "pixel_accuracy": pixel_accuracy(confusion),
                "mean_iou": mean_iou(confusion),
                **ious,
            }
        )
        tick(len(rows))
    return total, pd.DataFrame(rows)


def predict_all(predictor: Predictor, samples: Iterable[Annotated]) -> Iterator[tuple[Annotated, Prediction]]:
    """In their order; neighbours of one size share a pass through the network."""
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


def _predict_batch(predictor: Predictor, batch: list[Annotated]) -> Iterator[tuple[Annotated, Prediction]]:
    return zip(batch, predictor.predict(np.stack([sample.image for sample in batch])), strict=True)
