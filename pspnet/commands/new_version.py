"""A bundle that is no version yet becomes one: its report is checked, its files are packed, its runs are linked."""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from pspnet.commands.register import Results
from pspnet.commands.workshop import Workshop
from pspnet.config.predict import PredictParams
from pspnet.errors import Problem, UserError
from pspnet.model.digest import digest
from pspnet.model.facts import bundle_facts
from pspnet.packaging import save_version
from pspnet.protocol import PredictionProtocol
from pspnet.registry.expected import Examples, write_expected
from pspnet.registry.provenance import collect, stage_runs
from pspnet.registry.seal import content_digest
from pspnet.registry.versions import Version
from pspnet.report import EvaluationReport, load_report
from pspnet.tracking.connection import experiment
from pspnet.tracking.naming import metrics
from pspnet.tracking.pipeline import data_sources, log_metrics, pipeline_key, pipeline_run


def add(shop: Workshop, results: Results, examples: Callable[[], Examples]) -> Version:
    facts = bundle_facts(results.bundle)
    report = _report_of(results, digest(results.bundle), shop.params.predict)
    with tempfile.TemporaryDirectory() as folder:
        return _add(shop, results, facts, report, examples, Path(folder))


def _report_of(results: Results, key: str, predict: PredictParams) -> EvaluationReport:
    """What was measured must be what will be served."""
    report = load_report(results.report)
    if report.bundle != key:
        found = f"is of the bundle {report.bundle[:12]}, and {results.bundle} is {key[:12]}"
        raise UserError(Problem(str(results.report), found, "the report of this bundle", "`dvc repro` evaluates it."))
    served = str(PredictionProtocol(**predict.model_dump()))
    if report.protocol != served:
        found = f"was measured in another way than params.yaml says: {report.protocol}"
        raise UserError(Problem(str(results.report), found, served, "`dvc repro` evaluates it again."))
    return report


def _add(
    shop: Workshop,
    results: Results,
    facts: dict[str, Any],
    report: EvaluationReport,
    examples: Callable[[], Examples],
    folder: Path,
) -> Version:
    client, params = shop.client, shop.params
    provenance, expected, version = (folder / name for name in ("provenance", "expected", "version"))
    tags = collect(provenance, data_sources(), results.records)
    home = experiment(client, shop.state, params.registry.model)
    tags |= stage_runs(client, [home], results.records)
    tags |= {f"fingerprint.{split}": fingerprint for split, fingerprint in facts["fingerprints"].items()}
    tags |= {f"fingerprint.{report.split}": report.fingerprint}
    if not math.isnan(report.mean_iou):
        tags["test_mean_iou"] = f"{report.mean_iou:.6f}"
    tags |= {"classes": str(len(facts["classes"])), "backbone": facts["backbone_digest"]}
    write_expected(examples(), expected)
    extra = {"provenance": provenance, "report": results.report, "expected": expected}
    save_version(results.bundle, params, extra, version)
    run_id = pipeline_run(client, shop.state, params, pipeline_key(params))
    # A place of its own: MLflow would mix it with what a killed attempt has left.
    place = f"versions/{report.bundle[:16]}-{uuid4().hex[:8]}"
    client.log_artifacts(run_id, str(version), place)
    source = f"{client.get_run(run_id).info.artifact_uri}/{place}"
    _tell_reuse(shop, run_id, tags)
    told = client.get_run(run_id).data.metrics  # by the evaluation, unless that was a cache hit
    summary = report.summary()
    figures = {f"{report.split}_{name}": summary[name] for name in ("mean_iou", "pixel_accuracy")}
    figures[f"{report.split}_iou"] = summary["class_iou"]
    log_metrics(client, run_id, {name: value for name, value in metrics(figures).items() if name not in told})
    return shop.versions.add(source, run_id, report.bundle, content_digest(version), {**tags, "pipeline": run_id})


def _tell_reuse(shop: Workshop, pipeline: str, tags: dict[str, str]) -> None:
    """The pipeline's run says which stages' results were made by an earlier one, or elsewhere."""
    for tag, value in tags.items():
        kind, _, stage = tag.partition(".")
        if kind != "run":
            continue
        elsewhere = stage.endswith(".elsewhere")
        if elsewhere or shop.client.get_run(value).data.tags.get("mlflow.parentRunId") != pipeline:
            shop.client.set_tag(pipeline, f"reused.{stage}", value)
