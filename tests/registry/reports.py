"""Reports created from confusion matrices, and the gate's decisions on them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pspnet.config.promotion import PromotionParams
from pspnet.evaluation.report import EvaluationReport
from pspnet.metrics import intersection_and_union
from pspnet.registry.gate import Decision, decide

CLASSES = ("road", "car", "sky", "tree", "train")
RULES: dict[str, Any] = {
    "min_mean_iou": 0.5,
    "min_gain": 0.1,
    "gain_measured_by": "difference",
    "max_class_loss": 0.1,
    "resamples": 200,
    "approval": "auto",
}
Matrix = NDArray[np.int64]


def found(road_and_car: int, sky_and_tree: int | None = None, out_of: int = 100) -> Matrix:
    """Return a confusion matrix where road and car have the IoU road_and_car / out_of; sky and tree work the same way.

    In each pair, both classes have `hits` correct pixels. The other pixels of the first class are predicted as the
    second, which has no others. So the union is `out_of` pixels for both. No pixel is a train.
    """
    confusion = np.zeros((5, 5), np.int64)
    for first, hits in ((0, road_and_car), (2, road_and_car if sky_and_tree is None else sky_and_tree)):
        confusion[first, first] = confusion[first + 1, first + 1] = hits
        confusion[first, first + 1] = out_of - hits
    return confusion


def report(
    *images: Matrix, bundle: str = "a", classes: Sequence[str] = CLASSES, split: str = "today", groups: str = ""
) -> EvaluationReport:
    """Return a report on these images. `groups` has one letter for each image. By default, each image is a separate
    group.
    """
    rows = []
    for number, confusion in enumerate(images):
        intersection, union = intersection_and_union(confusion)
        counts = {"intersection": intersection, "union": union}
        rows.append(
            {"id": f"image{number}", "group": groups[number] if groups else f"group{number}"}
            | {f"{kind}_{name}": v for kind, pixels in counts.items() for name, v in zip(classes, pixels, strict=True)}
        )
    total = np.sum(images, axis=0)
    colors = ((0, 0, 0),) * len(classes)
    rest = (split, tuple(classes), colors, total, pd.DataFrame(rows))
    return EvaluationReport({}, bundle, "single scale", "test", *rest)


def gate(candidate: EvaluationReport, champion: EvaluationReport | None, **changes: Any) -> Decision:
    rules = PromotionParams(**RULES | {name: value for name, value in changes.items() if name in RULES})
    asked = {
        "candidate_version": 7,
        "champion_version": 5,
        "predicts_the_same": None,
        "withdrawn": None,
        "earlier_decisions": 3,
        "forced": False,
    }
    return decide(candidate, champion, rules, **asked | {k: v for k, v in changes.items() if k not in RULES})


GOOD, OLD = report(found(90)), report(found(80), bundle="b")
NOTHING = np.zeros((5, 5), np.int64)
