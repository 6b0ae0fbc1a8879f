"""Finds out whether `pspnet register --promote` would change nothing; if so, `pspnet retrain` starts no flow."""

from mlflow.exceptions import MlflowException

from pspnet.machine.process import exclusive
from pspnet.registry.evidence import LocalData, recorded_decision
from pspnet.registry.model_registry import ModelRegistry
from pspnet.registry.promotion import LOCK, Promotion
from pspnet.registry.registration import Results, version_of
from pspnet.registry.versions import CHALLENGER, CHAMPION, Version


def headline(registry: ModelRegistry, results: Results) -> str | None:
    """Return what `pspnet register --promote` would print, or None if it would change or decide something."""
    with exclusive(registry.state / LOCK, "the registry from this checkout"):
        version = version_of(registry, results)
        if version is None or not _run_names(registry, version):
            return None
        registry.audit.settle()
        promotion = _promotion(registry, version, LocalData(results.prepared, results.report))
    return promotion.headline(registry.versions.model) if promotion else None


def _promotion(registry: ModelRegistry, version: Version, local: LocalData) -> Promotion | None:
    """Return the outcome, if the gate has already decided this question and its decision was carried out."""
    champion = registry.versions.alias(CHAMPION)
    if champion == version.number:
        return Promotion("is champion", version.number)
    if champion is None or registry.versions.alias(CHALLENGER) != version.number:
        return None
    decision = recorded_decision(registry, version, registry.versions.get(str(champion)), local)
    if decision is None:
        return None
    if decision.outcome != "passed":
        return Promotion(decision.outcome, version.number, decision)
    waits = registry.params.promotion.approval == "manual" and version.tags.get("approval") == "waiting"
    return Promotion("waiting", version.number, decision) if waits else None


def _run_names(registry: ModelRegistry, version: Version) -> bool:
    """Return whether the pipeline's run has the version number in its tags."""
    try:
        return registry.client.get_run(version.run_id).data.tags.get("pspnet.version") == str(version.number)
    except MlflowException:  # someone may have deleted it
        return True
