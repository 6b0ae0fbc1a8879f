"""The gate's question put and answered: reports on today's test split, a version asked, a decision recorded."""

import json
from dataclasses import dataclass
from pathlib import Path

from pspnet import terminal
from pspnet.commands.workshop import Workshop
from pspnet.dataset.annotated import AnnotatedImages
from pspnet.dataset.prepared import PreparedDataset
from pspnet.dataset.samples import Split
from pspnet.outputs import whole_folder
from pspnet.promotion import Decision, decide
from pspnet.registry.audit import withdrawal
from pspnet.registry.decisions import question
from pspnet.registry.expected import difference
from pspnet.registry.versions import Version, part
from pspnet.report import EvaluationReport, load_report, write_report
from pspnet.served import ServedPredictor, served

SPLIT: Split = "test"


@dataclass(frozen=True)
class Data:
    """Where today's data and reports are; another host may have neither."""

    prepared: Path
    report: Path


def judge(shop: Workshop, version: Version, champion: Version | None, data: Data, forced: bool) -> Decision:
    """A question that was asked before is not asked again."""
    withdrawn = withdrawal(shop.audit.moves(), version.number)
    fingerprint = _todays_fingerprint(shop, version, data)
    asked = _question(shop, version, champion, fingerprint, withdrawn, forced)
    if answered := shop.decisions.find(asked, version):
        return answered
    decision = decide(
        _report(shop, version, fingerprint, data),
        _report(shop, champion, fingerprint, data) if champion else None,
        shop.params.promotion,
        candidate_version=version.number,
        champion_version=champion.number if champion else None,
        predicts_the_same=difference(shop.folder(version)),
        withdrawn=withdrawn,
        earlier_decisions=shop.decisions.count(fingerprint, besides=asked),
        forced=forced,
    )
    shop.decisions.record(asked, decision, version)
    return decision


def answered(shop: Workshop, version: Version, champion: Version, data: Data) -> Decision | None:
    """The decision that stands, if the gate has been asked about today's champion, test split and rules."""
    withdrawn = withdrawal(shop.audit.moves(), version.number)
    asked = _question(shop, version, champion, _todays_fingerprint(shop, version, data), withdrawn, forced=False)
    return shop.decisions.find(asked, version)


def _question(
    shop: Workshop, version: Version, champion: Version | None, fingerprint: str, withdrawn: str | None, forced: bool
) -> str:
    rules = shop.params.promotion.model_dump()
    return question(version.bundle, champion.bundle if champion else "", fingerprint, rules, bool(withdrawn), forced)


def _todays_fingerprint(shop: Workshop, version: Version, data: Data) -> str:
    """Of the test split that is prepared here; without one, of that on which the version was measured."""
    if (data.prepared / "dataset.json").exists():
        return PreparedDataset.open(data.prepared).fingerprints[SPLIT]
    return load_report(part(shop.folder(version), "report")).fingerprint


def _report(shop: Workshop, version: Version, fingerprint: str, data: Data) -> EvaluationReport:
    """On today's test split if that can be; a model of other classes cannot be measured there."""
    measured = shop.state / "evaluations" / f"{version.bundle[:16]}-{fingerprint[:16]}"
    folder = shop.folder(version)
    registered = load_report(part(folder, "report"))
    if (data.report / "report.json").exists():
        # Asked before all of it is read: it may be of another bundle, of a time when reports were different, or of
        # other settings than the version serves with.
        facts = json.loads((data.report / "report.json").read_text(encoding="utf-8"))
        wanted = {"bundle": version.bundle, "fingerprint": fingerprint, "protocol": registered.protocol}
        if all(facts.get(name) == value for name, value in wanted.items()):
            return load_report(data.report)
    if registered.fingerprint == fingerprint:
        return registered
    if not measured.exists():
        dataset = PreparedDataset.open(data.prepared)
        if dataset.classes != registered.classes:
            return registered
        with whole_folder(measured) as partial:
            write_report(_measured(version, folder, registered.protocol, dataset), [], [], {}, partial)
    return load_report(measured)


def _measured(version: Version, folder: Path, protocol: str, dataset: PreparedDataset) -> EvaluationReport:
    """By the version's own code, as it is served: its images are predicted as those of its own report."""
    from pspnet.evaluation import measure  # loads torch
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
