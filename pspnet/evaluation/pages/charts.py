"""Training histories as charts for `chart.html.j2`."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

CHARTED_CLASSES = 5  # in one chart, which has as many colors


def charts(history: pd.DataFrame) -> list[dict[str, Any]]:
    """The charts for a training history. Losses share one chart, scores share another, and up to five classes share
    one; other columns have their own.

    Epochs without a value have no point.
    """
    panels: dict[str, list[dict[str, Any]]] = {"loss": [], "score": []}
    columns = history.select_dtypes("number").columns.drop(["step", "epoch"], errors="ignore")
    of_classes = _class_charts(columns)
    for name in columns:
        measured = history[np.isfinite(history[name])]
        points = list(zip(measured["epoch"].tolist(), measured[name].tolist(), strict=True))
        panel = "loss" if name.endswith("loss") else "score" if name.endswith(("iou", "accuracy")) else name
        panel, label = of_classes.get(name, (panel, name))
        if points:
            panels.setdefault(panel, []).append({"name": label, "points": points})
    return [
        {
            "title": title,
            "series": series,
            "epochs": _ticks([epoch for one in series for epoch, _ in one["points"]]),
            "values": _ticks([value for one in series for _, value in one["points"]]),
        }
        for title, series in panels.items()
        if series
    ]


def _class_charts(columns: Sequence[str]) -> dict[str, tuple[str, str]]:
    """A column such as accepted/road -> the chart that it is in, and the class."""
    places: dict[str, tuple[str, str]] = {}
    count = Counter[str]()
    for column in columns:
        kind, _, name = column.partition("/")
        if name:
            first = 1 + count[kind] // CHARTED_CLASSES * CHARTED_CLASSES
            places[column] = f"{kind}, from class {first}" if first > 1 else kind, name
            count[kind] += 1
    return places


def _ticks(values: list[float]) -> list[float]:
    """About five round numbers that cover the values. They start at zero if that wastes less than half of the axis."""
    low, high = min(values), max(values)
    low = 0.0 if 0 <= low < high / 2 else low
    rough = (high - low if high - low > 1e-4 * abs(high) else abs(high) or 1.0) / 5  # a constant also needs an axis
    step = next(s for s in (m * 10.0 ** math.floor(math.log10(rough)) for m in (1, 2, 5, 10)) if s > rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{tick * step:.9g}") for tick in range(first, max(first + 1, last) + 1)]
