"""The report of an evaluation: numbers for programs (JSON, Parquet, CSV) and one page for people (HTML).

The same report always gives the same bytes, because it contains no times, no paths and nothing in random order.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from pspnet import metrics
from pspnet.errors import Problem, UserError
from pspnet.evaluation.pages.charts import charts
from pspnet.evaluation.pages.templates import data_url, page_template
from pspnet.evaluation.panels import IGNORED, Picture, class_layer, error_layer, save_panel, wrong_pixels
from pspnet.printable import cell

Histories = dict[str, pd.DataFrame]  # training stage -> one row per record; no rows if it was skipped
FORMAT = 3
PAGE = "report.html"
PICTURE = "picture.png"  # shows the worst test image; missing if the evaluation has no pictures
COUNTING = (
    "One confusion matrix counts the labeled pixels of all images. IoU and pixel accuracy are computed from it. A "
    "class that appears in neither the masks nor the predictions is absent: it has no IoU and is left out of the mean."
)
LONGEST_PX, TINY_PX, THINNEST_PX = 480, 240, 16  # lengths of a picture's sides on the page


@dataclass(frozen=True, eq=False)
class EvaluationReport:
    model: dict[str, Any]  # short facts, shown as a table
    bundle: str  # digest of the bundle that was evaluated
    protocol: str  # how the images were predicted
    split: str
    fingerprint: str  # fingerprint of that split
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    confusion: metrics.Confusion  # rows = mask, columns = prediction
    # One row per image: id, group, pixels, pixel_accuracy, mean_iou, and for each class iou_<class> (NaN = absent) and
    # the pixel counts behind it, intersection_<class> and union_<class>. Over all images, these counts add up to those
    # in the confusion matrix.
    images: pd.DataFrame

    @property
    def mean_iou(self) -> float:
        return metrics.mean_iou(self.confusion)

    @property
    def pixel_accuracy(self) -> float:
        return metrics.pixel_accuracy(self.confusion)

    @property
    def class_iou(self) -> NDArray[np.float64]:
        return metrics.class_iou(self.confusion)

    @property
    def groups(self) -> pd.DataFrame:
        """A row for each group, worst first: group, images, pixels, and mean_iou averaged over the group's images."""
        table = self.images.groupby("group", as_index=False, dropna=False).agg(
            images=("id", "size"), pixels=("pixels", "sum"), mean_iou=("mean_iou", "mean")
        )
        return table.sort_values("mean_iou", kind="stable", ignore_index=True)

    def summary(self) -> dict[str, Any]:
        """The headline numbers, to be written as JSON. Missing numbers are None."""
        return {
            "mean_iou": _or_none(self.mean_iou),
            "pixel_accuracy": _or_none(self.pixel_accuracy),
            "class_iou": {name: _or_none(iou) for name, iou in zip(self.classes, self.class_iou, strict=True)},
            "images": len(self.images),
            "pixels": int(self.confusion.sum()),
            "split": self.split,
            "fingerprint": self.fingerprint,
            "bundle": self.bundle,
            "protocol": self.protocol,
            "counting": COUNTING,
        }


def write_report(
    report: EvaluationReport, best: list[Picture], worst: list[Picture], histories: Histories, folder: Path
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    report.images.to_parquet(folder / "images.parquet", index=False)
    report.groups.to_parquet(folder / "groups.parquet", index=False)
    names = list(map(cell, report.classes))
    counts = pd.DataFrame(report.confusion, index=names, columns=names)
    counts.to_csv(folder / "confusion.csv", index_label="mask \\ prediction", lineterminator="\n")
    (folder / PAGE).write_text(_page(report, best, worst, histories), encoding="utf-8", newline="\n")
    for picture in [*worst, *best][:1]:
        save_panel(picture, report.colors, folder / PICTURE)
    facts = {"format": FORMAT, **report.summary(), "model": report.model, "classes": report.classes}
    facts |= {"colors": report.colors, "confusion": report.confusion.tolist()}
    lines = [f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in facts.items()]
    (folder / "report.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8", newline="\n")


def load_report(folder: Path) -> EvaluationReport:
    try:
        facts = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        images = pd.read_parquet(folder / "images.parquet")
    except FileNotFoundError as error:
        missing = "images.parquet" if (folder / "report.json").exists() else "report.json"
        raise UserError(Problem(str(folder), f"no {missing}", "a report", "Evaluate again.")) from error
    if (found := facts.get("format")) != FORMAT:
        raise UserError(Problem(str(folder / "report.json"), f"format {found}", f"format {FORMAT}", "Evaluate again."))
    return EvaluationReport(
        **{name: facts[name] for name in ("model", "bundle", "protocol", "split", "fingerprint")},
        classes=tuple(facts["classes"]),
        colors=tuple((red, green, blue) for red, green, blue in facts["colors"]),
        confusion=np.array(facts["confusion"], dtype=np.int64),
        images=images,
    )


def _page(report: EvaluationReport, best: list[Picture], worst: list[Picture], histories: Histories) -> str:
    template = page_template(Path(__file__).with_name("report.html.j2"), score=_score, share=_share)
    return template.render(
        report=report,
        counting=COUNTING,
        histogram=np.histogram(report.images["mean_iou"].dropna(), bins=20, range=(0, 1))[0].tolist(),
        classes=_classes(report),
        confusions=_confusions(report),
        curves={name: charts(history) for name, history in histories.items()},
        pictures={"worst": [_views(report, one) for one in worst], "best": [_views(report, one) for one in best]},
        groups=report.groups.to_dict("records"),
    )


def _classes(report: EvaluationReport) -> list[dict[Any, Any]]:
    """The classes, best first, with absent classes last."""
    share = report.confusion.sum(axis=1) / max(1, report.confusion.sum())
    table = pd.DataFrame({"name": report.classes, "color": report.colors, "iou": report.class_iou, "share": share})
    rows: list[dict[Any, Any]] = table.sort_values("iou", ascending=False, kind="stable").to_dict("records")
    return rows


def _confusions(report: EvaluationReport) -> list[dict[str, Any]]:
    """The ten pairs of confused classes with the most pixels."""
    wrong = report.confusion * ~np.eye(len(report.classes), dtype=bool)
    of_class = wrong / np.maximum(1, report.confusion.sum(axis=1, keepdims=True))
    of_errors = wrong / max(1, wrong.sum())
    worst = np.argsort(-wrong, axis=None, kind="stable")[:10]
    pairs = [(int(at) // len(wrong), int(at) % len(wrong)) for at in worst if wrong.flat[at]]
    return [{"mask": m, "prediction": p, "of_class": of_class[m, p], "of_errors": of_errors[m, p]} for m, p in pairs]


def _views(report: EvaluationReport, picture: Picture) -> dict[str, Any]:
    """The layers of a picture as data URLs, at the size they have on the page, and its classes, largest area first."""
    longest = max(picture.mask.shape)
    scale = LONGEST_PX / longest if longest > LONGEST_PX else max(1, TINY_PX // longest)
    height, width = (max(THINNEST_PX, round(side * scale)) for side in picture.mask.shape)
    nearest, smooth = Image.Resampling.NEAREST, Image.Resampling.LANCZOS
    image = np.asarray(Image.fromarray(picture.image).resize((width, height), smooth if scale < 1 else nearest))
    mask, prediction = (
        np.asarray(Image.fromarray(one).resize((width, height), nearest)) for one in (picture.mask, picture.prediction)
    )
    confusion = metrics.confusion_matrix(picture.mask, picture.prediction, len(report.classes), IGNORED)
    area = confusion.sum(axis=0) + confusion.sum(axis=1)
    present = (k for k in np.argsort(-area, kind="stable") if area[k])
    iou = metrics.class_iou(confusion)
    return {
        "id": picture.id,
        "mean_iou": picture.mean_iou,
        "wrong": float(wrong_pixels(picture.mask, picture.prediction).sum() / max(1, confusion.sum())),
        "size": (width, height),
        "image": data_url(image),
        "mask": data_url(class_layer(mask, report.colors)),
        "prediction": data_url(class_layer(prediction, report.colors)),
        "errors": data_url(error_layer(mask, prediction)),
        "legend": [(report.classes[k], report.colors[k], iou[k]) for k in present],
    }


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _score(value: float, missing: str = "absent") -> str:
    return missing if math.isnan(value) else f"{value:.3f}"


def _share(value: float) -> str:
    return "< 0.1 %" if 0 < value < 0.001 else f"{value:.1%}".replace("%", " %")
