"""The evaluate stage: from the bundle and the test split to a report with numbers, tables, and a page with pictures."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from pspnet.config.evaluate import EvaluateParams
from pspnet.config.predict import PredictParams
from pspnet.config.runtime import RuntimeParams
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.dataset.store.splits import Split
from pspnet.evaluation.evaluating import best_and_worst, best_val_mean_iou, check_classes, evaluate_bundle
from pspnet.evaluation.panels import save_panel
from pspnet.evaluation.report import write_report
from pspnet.machine.outputs import whole_file, whole_folder
from pspnet.model.backbone.digest import digest
from pspnet.model.bundle import Bundle
from pspnet.model.device import configure
from pspnet.prediction.image.predictor import Member, Predictor
from pspnet.prediction.image.protocol import PredictionProtocol
from pspnet.tracking.run import StageRun

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
    run: StageRun,
    tick: Callable[[int, int, str], None],
) -> dict[str, Any]:
    """Evaluate the bundle and write the report. Returns the summary of the report."""
    dataset, model = PreparedDataset.open(prepared), Bundle.load(bundle)
    check_classes(model, bundle, dataset, prepared)
    device = configure(runtime)
    bundle_digest = digest(bundle)
    run.identify(fingerprint=dataset.fingerprints[SPLIT], bundle=bundle_digest, device=device.type)
    run.dataset(SPLIT, dataset.fingerprints[SPLIT], prepared, dataset.images[SPLIT])
    members = [Member(model.network.to(device), model.preprocessing)]
    predictor = Predictor(members, PredictionProtocol(**predict.model_dump()), device, runtime.precision)
    report = evaluate_bundle(model, bundle_digest, dataset, SPLIT, predictor, tick)
    best, worst = best_and_worst(report, dataset, SPLIT, predictor, evaluate.pictures)
    curves = {path.stem: pd.read_csv(path) for path in histories}
    with whole_folder(out) as folder:
        write_report(report, best, worst, curves, folder)
    summary = report.summary()
    with whole_file(metrics) as path:
        headline = {name: summary[name] for name in ("mean_iou", "pixel_accuracy", "class_iou")}
        path.write_text(json.dumps(headline, indent=2) + "\n", encoding="utf-8")
    figures = {f"test_{name}": summary[name] for name in ("mean_iou", "pixel_accuracy")}
    figures["test_iou"] = summary["class_iou"]
    run.figures(figures)
    # The validation score is logged here too: the training stage may have been a cache hit, which has no MLflow run.
    run.headline({**figures, "val_mean_iou": best_val_mean_iou(curves)})
    run.artifacts(metrics, *sorted(out.iterdir()))
    for kind, pictures in (("best", best), ("worst", worst)):
        for number, picture in enumerate(pictures, start=1):
            run.artifact(f"pictures/{kind}-{number:02}.png", partial(save_panel, picture, model.colors))
    return summary
