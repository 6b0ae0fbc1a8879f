"""The evidence for the gate: reports on the current test split, and whether a version predicts what its bundle did."""

import json
from dataclasses import dataclass
from pathlib import Path

from pspnet.dataset.annotated import AnnotatedImages
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.dataset.store.splits import Split
from pspnet.evaluation.report import EvaluationReport, load_report, write_report
from pspnet.machine import terminal
from pspnet.machine.outputs import whole_folder
from pspnet.registry.decisions import question_key
from pspnet.registry.expected import difference
from pspnet.registry.gate import Decision, decide
from pspnet.registry.model_registry import ModelRegistry
from pspnet.registry.records import withdrawal
from pspnet.registry.versions import Version, part
from pspnet.serving.client import ServedPredictor, served

SPLIT: Split = "test"


@dataclass(frozen=True)
class LocalData:
    """Paths of the current prepared dataset and report in this checkout. On another host, neither may exist."""

    prepared: Path
    report: Path


def decide_on(
    registry: ModelRegistry, version: Version, champion: Version | None, local: LocalData, forced: bool
) -> Decision:
    """Return the gate's decision on a version. A question that was decided before gets the recorded decision."""
    withdrawn = withdrawal(registry.audit.moves(), version.number)
    fingerprint = _todays_fingerprint(registry, version, local)
    key = _key(registry, version, champion, fingerprint, withdrawn, forced)
    if recorded := registry.decisions.find(key, version):
        return recorded
    decision = decide(
        _report(registry, version, fingerprint, local),
        _report(registry, champion, fingerprint, local) if champion else None,
        registry.params.promotion,
        candidate_version=version.number,
        champion_version=champion.number if champion else None,
        predicts_the_same=difference(registry.folder(version)),
        withdrawn=withdrawn,
        earlier_decisions=registry.decisions.count(fingerprint, besides=key),
        forced=forced,
    )
    registry.decisions.record(key, decision, version)
    return decision


def recorded_decision(
    registry: ModelRegistry, version: Version, champion: Version, local: LocalData
) -> Decision | None:
    """Return the recorded decision on this version for the current champion, test split and rules, if there is one."""
    withdrawn = withdrawal(registry.audit.moves(), version.number)
    key = _key(registry, version, champion, _todays_fingerprint(registry, version, local), withdrawn, forced=False)
    return registry.decisions.find(key, version)


def _key(
    registry: ModelRegistry,
    version: Version,
    champion: Version | None,
    fingerprint: str,
    withdrawn: str | None,
    forced: bool,
) -> str:
    rules = registry.params.promotion.model_dump()
    return question_key(
        version.bundle, champion.bundle if champion else "", fingerprint, rules, bool(withdrawn), forced
    )


def _todays_fingerprint(registry: ModelRegistry, version: Version, local: LocalData) -> str:
    """Return the fingerprint of the test split prepared here, or else of the one the version was evaluated on."""
    if (local.prepared / "dataset.json").exists():
        return PreparedDataset.open(local.prepared).fingerprints[SPLIT]
    return load_report(part(registry.folder(version), "report")).fingerprint


def _report(registry: ModelRegistry, version: Version, fingerprint: str, local: LocalData) -> EvaluationReport:
    """Return a version's report on the current test split, or its original report if the split has other classes."""
    measured = registry.state / "evaluations" / f"{version.bundle[:16]}-{fingerprint[:16]}"
    folder = registry.folder(version)
    registered = load_report(part(folder, "report"))
    if (local.report / "report.json").exists():
        # Checked before the report is loaded: the report may describe a different bundle, be in an older format, or
        # come from an evaluation with settings other than those the version serves with.
        facts = json.loads((local.report / "report.json").read_text(encoding="utf-8"))
        wanted = {"bundle": version.bundle, "fingerprint": fingerprint, "protocol": registered.protocol}
        if all(facts.get(name) == value for name, value in wanted.items()):
            return load_report(local.report)
    if registered.fingerprint == fingerprint:
        return registered
    if not measured.exists():
        dataset = PreparedDataset.open(local.prepared)
        if dataset.classes != registered.classes:
            return registered
        with whole_folder(measured) as partial:
            write_report(_measured(version, folder, registered.protocol, dataset), [], [], {}, partial)
    return load_report(measured)


def _measured(version: Version, folder: Path, protocol: str, dataset: PreparedDataset) -> EvaluationReport:
    """Evaluate a version by running its own code, as serving does. Its original report was created in the same way."""
    from pspnet.evaluation.measuring import measure  # loads torch
    from pspnet.model.bundle import Bundle

    samples = AnnotatedImages(dataset.reader(), dataset.annotated(SPLIT))
    title = f"version {version.number} on today's test split"
    with served(folder) as ask, terminal.progress(title) as tick:
        confusion, images = measure(
            ServedPredictor(ask), samples, dataset.classes, dataset.ignore, lambda done: tick(done, len(samples), "")
        )
    return EvaluationReport(
        model={"version": str(version.number)},
        bundle=version.bundle,
        protocol=protocol,
        split=SPLIT,
        fingerprint=dataset.fingerprints[SPLIT],
        classes=dataset.classes,
        colors=Bundle.load(part(folder, "bundle")).colors,
        confusion=confusion,
        images=images,
    )
