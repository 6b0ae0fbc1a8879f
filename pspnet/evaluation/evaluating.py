"""Evaluates a bundle on a split of the prepared set: the report, and pictures of the best and worst images."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from pspnet.dataset.annotated import AnnotatedImages
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.dataset.store.splits import Split
from pspnet.errors import Problem, UserError
from pspnet.evaluation.measuring import measure
from pspnet.evaluation.panels import Picture
from pspnet.evaluation.report import EvaluationReport
from pspnet.model.bundle import Bundle
from pspnet.prediction.image.predictor import Predictor


def check_classes(model: Bundle, bundle: Path, dataset: PreparedDataset, prepared: Path) -> None:
    if model.classes != dataset.classes:
        found, expected = f"has the classes {', '.join(model.classes)}", ", ".join(dataset.classes)
        fix = "Run the finetune stage again."
        raise UserError(Problem(str(bundle), found, f"those of {prepared}: {expected}", fix))


def evaluate_bundle(
    model: Bundle,
    bundle_digest: str,
    dataset: PreparedDataset,
    split: Split,
    predictor: Predictor,
    tick: Callable[[int, int, str], None],
) -> EvaluationReport:
    """Evaluate `model` on every image of `split` that has a mask. `predictor` must run the same model."""
    samples = AnnotatedImages(dataset.reader(), dataset.annotated(split))
    confusion, images = measure(
        predictor, samples, model.classes, dataset.ignore, lambda done: tick(done, len(samples), "images")
    )
    if not confusion.any():
        raise UserError(Problem(split, "has no annotated pixels", "at least one pixel with a class"))
    return EvaluationReport(
        model=_facts(model),
        bundle=bundle_digest,
        protocol=str(predictor.protocol),
        split=split,
        fingerprint=dataset.fingerprints[split],
        classes=model.classes,
        colors=model.colors,
        confusion=confusion,
        images=images,
    )


def best_and_worst(
    report: EvaluationReport, dataset: PreparedDataset, split: Split, predictor: Predictor, count: int
) -> tuple[list[Picture], list[Picture]]:
    """Up to `count` images with the highest mean IoU and up to `count` others with the lowest, all predicted again."""
    samples = AnnotatedImages(dataset.reader(), dataset.annotated(split))
    ranked = report.images["mean_iou"].dropna().sort_values(ascending=False, kind="stable").index
    best, worst = ranked[:count], ranked[count:][::-1][:count]

    def picture(position: int) -> Picture:
        sample = samples[position]
        [prediction] = predictor.predict(sample.image[None])
        return Picture(sample.id, report.images.loc[position, "mean_iou"], sample.image, sample.mask, prediction.mask)

    return list(map(picture, best)), list(map(picture, worst))


def best_val_mean_iou(histories: dict[str, pd.DataFrame]) -> float | None:
    """The highest validation mIoU in the training histories, or None if the validation split was never used."""
    measured = [history["val_mean_iou"].max() for history in histories.values() if "val_mean_iou" in history]
    return max(measured, default=None)


def _facts(model: Bundle) -> dict[str, str]:
    """The properties of the network that are shown in the report's table."""
    architecture = model.network.architecture
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    return {
        "network": f"PSPNet, ResNet-{architecture.depth}",
        "width": f"{architecture.width:g}",
        "output stride": str(architecture.output_stride),
        "stem": architecture.stem,
        "dilation": architecture.dilation,
        "align corners": str(architecture.align_corners).lower(),
        "decoder": architecture.decoder,
        "pyramid weights": architecture.pyramid_weights,
        "parameters": f"{parameters:,}",
        "pretraining": model.pretraining,
    }
