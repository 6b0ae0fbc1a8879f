"""The bundle on the test split -> the report: numbers, tables, a page with pictures."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pspnet.config.evaluate import EvaluateParams
from pspnet.config.predict import PredictParams
from pspnet.config.runtime import RuntimeParams
from pspnet.dataset.annotated import AnnotatedImages
from pspnet.dataset.prepared import PreparedDataset
from pspnet.dataset.samples import Split
from pspnet.errors import Problem, UserError
from pspnet.evaluation import measure
from pspnet.model.bundle import Bundle
from pspnet.model.weights import digest
from pspnet.outputs import whole_file, whole_folder
from pspnet.prediction import Predictor
from pspnet.report import EvaluationReport, Picture, write_report
from pspnet.training.runtime import configure

SPLIT: Split = "test"


def run(
    evaluate: EvaluateParams,
    predict: PredictParams,
    runtime: RuntimeParams,
    *,
    prepared: Path,
    bundle: Path,
    histories: Sequence[Path],
    out: Path,
    metrics: Path,
    tick: Callable[[int, int, str], None],
) -> dict[str, Any]:
    """Returns the headline numbers."""
    dataset = PreparedDataset.open(prepared)
    model = Bundle.load(bundle)
    if model.classes != dataset.classes:
        raise UserError(
            Problem(
                str(bundle),
                f"knows the classes {', '.join(model.classes)}",
                f"those of {prepared}: {', '.join(dataset.classes)}",
                "Run the finetune stage again.",
            )
        )
    device = configure(runtime)
    predictor = Predictor(
        model.network.to(device), model.preprocessing, predict.window_px, predict.window_overlap_px, device,
        runtime.precision,
    )  # fmt: skip
    samples = AnnotatedImages(dataset.reader(), dataset.annotated(SPLIT))
    confusion, images = measure(
        predictor, samples, model.classes, dataset.ignore, lambda done: tick(done, len(samples), "images")
    )
    if not confusion.any():
        raise UserError(Problem(SPLIT, "has no annotated pixel", "masks that are not ignored throughout"))
    report = EvaluationReport(
        model=_facts(model),
        bundle=digest(bundle),
        split=SPLIT,
        fingerprint=dataset.fingerprints[SPLIT],
        classes=model.classes,
        colors=model.colors,
        confusion=confusion,
        images=images,
    )
    summary = report.summary()
    by_quality = images["mean_iou"].dropna().sort_values(ascending=False, kind="stable").index
    best = by_quality[: evaluate.pictures]
    worst = by_quality[evaluate.pictures :][::-1][: evaluate.pictures]
    with whole_folder(out) as folder:
        write_report(
            report,
            [_picture(predictor, samples, images, position) for position in best],
            [_picture(predictor, samples, images, position) for position in worst],
            {path.stem: pd.read_csv(path) for path in histories},
            folder,
        )
    with whole_file(metrics) as path:
        headline = {name: summary[name] for name in ("mean_iou", "pixel_accuracy", "class_iou")}
        path.write_text(json.dumps(headline, indent=2) + "\n", encoding="utf-8")
    return summary


def _picture(predictor: Predictor, samples: AnnotatedImages, images: pd.DataFrame, position: int) -> Picture:
    sample = samples[position]
    [prediction] = predictor.predict(sample.image[None])
    return Picture(sample.id, images.loc[position, "mean_iou"], sample.image, sample.mask, prediction.mask)


def _facts(model: Bundle) -> dict[str, str]:
    """What the report's reader wants to know of the network."""
    architecture = model.network.architecture
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    return {
        "network": f"PSPNet, ResNet-{architecture.depth}",
        "width": f"{architecture.width:g}",
        "output stride": str(architecture.output_stride),
        "parameters": f"{parameters:,}",
        "pretraining": model.pretraining,
    }
