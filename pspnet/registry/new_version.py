"""Creates a version from a bundle: checks the report, packs the files and links the runs."""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from pspnet.config.predict import PredictParams
from pspnet.errors import Problem, UserError
from pspnet.evaluation.report import EvaluationReport, load_report
from pspnet.model.backbone.digest import digest
from pspnet.model.backbone.facts import bundle_facts
from pspnet.prediction.image.protocol import PredictionProtocol
from pspnet.registry.expected import Examples, write_expected
from pspnet.registry.model_registry import ModelRegistry
from pspnet.registry.packaging import save_version
from pspnet.registry.provenance import collect, stage_runs
from pspnet.registry.registration import Results
from pspnet.registry.seal import content_digest
from pspnet.registry.versions import Version
from pspnet.tracking.connection import experiment
from pspnet.tracking.naming import metrics
from pspnet.tracking.pipeline import data_sources, log_metrics, pipeline_key, pipeline_run


def add(registry: ModelRegistry, results: Results, examples: Callable[[], Examples]) -> Version:
    facts = bundle_facts(results.bundle)
    report = _report_of(results, digest(results.bundle), registry.params.predict)
    with tempfile.TemporaryDirectory() as folder:
        return _add(registry, results, facts, report, examples, Path(folder))


def _report_of(results: Results, key: str, predict: PredictParams) -> EvaluationReport:
    """Return the report, after checking that it is about the model and settings that will be served."""
    report = load_report(results.report)
    if report.bundle != key:
        found = f"is a report on the bundle {report.bundle[:12]}, but {results.bundle} is {key[:12]}"
        raise UserError(Problem(str(results.report), found, "the report on this bundle", "`dvc repro` evaluates it."))
    served = str(PredictionProtocol(**predict.model_dump()))
    if report.protocol != served:
        found = f"comes from an evaluation with settings other than those in params.yaml: {report.protocol}"
        raise UserError(Problem(str(results.report), found, served, "`dvc repro` evaluates it again."))
    return report


def _add(
    registry: ModelRegistry,
    results: Results,
    facts: dict[str, Any],
    report: EvaluationReport,
    examples: Callable[[], Examples],
    folder: Path,
) -> Version:
    client, params = registry.client, registry.params
    provenance, expected, version = (folder / name for name in ("provenance", "expected", "version"))
    tags = collect(provenance, data_sources(), results.records)
    home = experiment(client, registry.state, params.registry.model)
    tags |= stage_runs(client, [home], results.records)
    tags |= {f"fingerprint.{split}": fingerprint for split, fingerprint in facts["fingerprints"].items()}
    tags |= {f"fingerprint.{report.split}": report.fingerprint}
    if not math.isnan(report.mean_iou):
        tags["test_mean_iou"] = f"{report.mean_iou:.6f}"
    tags |= {"classes": str(len(facts["classes"])), "backbone": facts["backbone_digest"]}
    write_expected(examples(), expected)
    extra = {"provenance": provenance, "report": results.report, "expected": expected}
    save_version(results.bundle, params, extra, version)
    run_id = pipeline_run(client, registry.state, params, pipeline_key(params))
    # Each attempt gets a new folder. Otherwise MLflow would mix its files with the leftovers of a killed attempt.
    place = f"versions/{report.bundle[:16]}-{uuid4().hex[:8]}"
    client.log_artifacts(run_id, str(version), place)
    source = f"{client.get_run(run_id).info.artifact_uri}/{place}"
    _tag_reuse(registry, run_id, tags)
    logged = client.get_run(run_id).data.metrics  # logged by the evaluation, unless that was a cache hit
    summary = report.summary()
    figures = {f"{report.split}_{name}": summary[name] for name in ("mean_iou", "pixel_accuracy")}
    figures[f"{report.split}_iou"] = summary["class_iou"]
    log_metrics(client, run_id, {name: value for name, value in metrics(figures).items() if name not in logged})
    return registry.versions.add(source, run_id, report.bundle, content_digest(version), {**tags, "pipeline": run_id})


def _tag_reuse(registry: ModelRegistry, pipeline: str, tags: dict[str, str]) -> None:
    """Tag the pipeline's run with the stages whose results came from an earlier run or from another machine."""
    for tag, value in tags.items():
        kind, _, stage = tag.partition(".")
        if kind != "run":
            continue
        elsewhere = stage.endswith(".elsewhere")
        if elsewhere or registry.client.get_run(value).data.tags.get("mlflow.parentRunId") != pipeline:
            registry.client.set_tag(pipeline, f"reused.{stage}", value)
