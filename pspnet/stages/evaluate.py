"""The bundle on the test split -> the report: numbers, tables, a page with pictures."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from pspnet.config.evaluate import EvaluateParams
from pspnet.config.predict import PredictParams
from pspnet.config.runtime import RuntimeParams
from pspnet.dataset.annotated import AnnotatedImages
from pspnet.dataset.prepared import PreparedDataset
from pspnet.dataset.samples import Split
from pspnet.errors import Problem, UserError
from pspnet.evaluation import measure
from pspnet.model.bundle import Bundle
from pspnet.model.digest import digest
from pspnet.outputs import whole_file, whole_folder
from pspnet.prediction import Member, Predictor
from pspnet.protocol import PredictionProtocol
from pspnet.report import EvaluationReport, Picture, class_layer, error_layer, write_report
from pspnet.tracking.run import StageRun
from pspnet.training.runtime import configure

SPLIT: Split = "test"
WIDEST_PX = 2000  # of a picture that goes with the run


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
    run: StageRun,
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
    bundle_digest = digest(bundle)
    run.identify(fingerprint=dataset.fingerprints[SPLIT], bundle=bundle_digest, device=device.type)
    run.dataset(SPLIT, dataset.fingerprints[SPLIT], prepared, dataset.images[SPLIT])
    protocol = PredictionProtocol(**predict.model_dump())
    predictor = Predictor([Member(model.network.to(device), model.preprocessing)], protocol, device, runtime.precision)
    samples = AnnotatedImages(dataset.reader(), dataset.annotated(SPLIT))
    confusion, images = measure(
        predictor, samples, model.classes, dataset.ignore, lambda done: tick(done, len(samples), "images")
    )
    if not confusion.any():
        raise UserError(Problem(SPLIT, "has no annotated pixel", "masks that are not ignored throughout"))
    report = EvaluationReport(
        model=_facts(model),
        bundle=bundle_digest,
        protocol=str(protocol),
        split=SPLIT,
        fingerprint=dataset.fingerprints[SPLIT],
        classes=model.classes,
        colors=model.colors,
        confusion=confusion,
        images=images,
    )
    summary = report.summary()
    by_quality = images["mean_iou"].dropna().sort_values(ascending=False, kind="stable").index
    shown = {
        "best": by_quality[: evaluate.pictures],
        "worst": by_quality[evaluate.pictures :][::-1][: evaluate.pictures],
    }
    pictures = {
        kind: [_picture(predictor, samples, images, position) for position in positions]
        for kind, positions in shown.items()
    }
    curves = {path.stem: pd.read_csv(path) for path in histories}
    with whole_folder(out) as folder:
        write_report(report, pictures["best"], pictures["worst"], curves, folder)
    with whole_file(metrics) as path:
        headline = {name: summary[name] for name in ("mean_iou", "pixel_accuracy", "class_iou")}
        path.write_text(json.dumps(headline, indent=2) + "\n", encoding="utf-8")
    _tell(run, summary, curves)
    run.artifacts(metrics, *sorted(out.iterdir()))
    for kind, some in pictures.items():
        for number, picture in enumerate(some, start=1):
            run.artifact(f"pictures/{kind}-{number:02}.png", partial(_save, picture, model.colors))
    return summary


def _tell(run: StageRun, summary: Mapping[str, Any], curves: Mapping[str, pd.DataFrame]) -> None:
    """To the pipeline's run val goes too: the training that measured it may have been a cache hit."""
    test = {
        "test_mean_iou": summary["mean_iou"],
        "test_pixel_accuracy": summary["pixel_accuracy"],
        "test_iou": summary["class_iou"],
    }
    val = [curve["val_mean_iou"].max() for curve in curves.values() if "val_mean_iou" in curve]
    run.figures(test)
    run.headline({**test, "val_mean_iou": max(val, default=None)})


def _picture(predictor: Predictor, samples: AnnotatedImages, images: pd.DataFrame, position: int) -> Picture:
    sample = samples[position]
    [prediction] = predictor.predict(sample.image[None])
    return Picture(sample.id, images.loc[position, "mean_iou"], sample.image, sample.mask, prediction.mask)


def _save(picture: Picture, colors: tuple[tuple[int, int, int], ...], path: Path) -> None:
    """Image, mask, prediction and errors side by side."""
    image = Image.fromarray(picture.image).convert("RGBA")
    layers = (
        np.zeros((*picture.mask.shape, 4), np.uint8),
        class_layer(picture.mask, colors),
        class_layer(picture.prediction, colors),
        error_layer(picture.mask, picture.prediction),
    )
    views = [np.asarray(Image.alpha_composite(image, Image.fromarray(layer)).convert("RGB")) for layer in layers]
    panel = Image.fromarray(np.concatenate(views, axis=1))
    panel.thumbnail((WIDEST_PX, WIDEST_PX), Image.Resampling.NEAREST)
    panel.save(path, "PNG")


def _facts(model: Bundle) -> dict[str, str]:
    """What the report's reader wants to know of the network."""
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
