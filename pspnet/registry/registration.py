"""`pspnet register`: turns a bundle into a version, with everything needed to trace, reproduce and trust it."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pspnet.config.params import Params
from pspnet.evaluation.report import PAGE, PICTURE
from pspnet.machine import terminal
from pspnet.machine.process import exclusive
from pspnet.model.backbone.digest import digest
from pspnet.registry.expected import Examples, examples_later
from pspnet.registry.model_registry import ModelRegistry
from pspnet.registry.packaging import settings
from pspnet.registry.promotion import LOCK, Promotion
from pspnet.registry.provenance import run_page
from pspnet.registry.versions import CHALLENGER, CHAMPION, Version
from pspnet.serving.client import Call


@dataclass(frozen=True)
class Results:
    """Paths of the stages' outputs. Some may not exist for a bundle from elsewhere."""

    bundle: Path
    report: Path
    prepared: Path
    records: Path


def examples_of(results: Results, params: Params, call: Call | None = None) -> Callable[[], Examples]:
    """Return a function that computes examples for a new version. With `call`, another process computes them early."""
    return examples_later(call, results.bundle, results.prepared, settings(params))


def register(
    registry: ModelRegistry, results: Results, examples: Callable[[], Examples] | None = None
) -> tuple[Version, bool]:
    """Register the bundle, if it is not registered yet. Return its version, and whether the version is new."""
    from mlflow.exceptions import MlflowException

    with exclusive(registry.state / LOCK, "the registry from this checkout"):
        version = known = version_of(registry, results)
        if version is None:
            from pspnet.registry.new_version import add

            version = add(registry, results, examples or examples_of(results, registry.params))
        # Done for a known version too, because the process that added it may have been killed before this point.
        if version.number not in (registry.versions.alias(CHAMPION), registry.versions.alias(CHALLENGER)):
            registry.versions.set_alias(CHALLENGER, version.number)
        with suppress(MlflowException):  # someone may have deleted the run of a known version
            registry.client.set_tag(version.run_id, "pspnet.version", str(version.number))
        return registry.versions.get(str(version.number)), known is None


def version_of(registry: ModelRegistry, results: Results) -> Version | None:
    return registry.versions.by_bundle(digest(results.bundle)) if results.bundle.is_dir() else None


def facts(
    registry: ModelRegistry, results: Results, version: Version, new: bool, promotion: Promotion | None
) -> dict[str, Any]:
    found = {
        "model": registry.versions.model,
        "version": version.number,
        "new": new,
        "bundle": version.bundle,
        "test_mean_iou": version.mean_iou,
        "report": str(results.report / PAGE),
        "picture": str(results.report / PICTURE),
        "pages": _pages(registry, version),
    }
    if promotion:
        found |= {"headline": promotion.headline(registry.versions.model), "promotion": promotion.facts()}
    return found


def _pages(registry: ModelRegistry, version: Version) -> dict[str, str]:
    """Return the addresses of the MLflow pages of the pipeline's run and of each stage's run."""
    runs = {name.removeprefix("run."): run for name, run in version.tags.items() if name.startswith("run.")}
    found = {
        name: run_page(registry.client, registry.state, run)
        for name, run in {"pipeline": version.run_id, **runs}.items()
        if not name.endswith(".elsewhere")
    }
    return {name: page for name, page in found.items() if page}


def show(registry: ModelRegistry, version: Version, new: bool) -> None:
    what = "is now version" if new else "is already version"
    terminal.out.print(f"{registry.versions.model}: the bundle {version.bundle[:12]} {what} {version.number}")
