"""`pspnet register`: a bundle becomes a version, with all that is needed to trace it, make it again and trust it."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pspnet import terminal
from pspnet.commands.promote import LOCK, Promotion
from pspnet.commands.workshop import Workshop
from pspnet.config.params import Params
from pspnet.model.digest import digest
from pspnet.packaging import settings
from pspnet.process import exclusive
from pspnet.registry.expected import Examples, examples_later
from pspnet.registry.provenance import run_page
from pspnet.registry.versions import CHALLENGER, CHAMPION, Version
from pspnet.report import PAGE
from pspnet.served import Call


@dataclass(frozen=True)
class Results:
    """What the stages have left; of a bundle from elsewhere some may be missing."""

    bundle: Path
    report: Path
    prepared: Path
    records: Path


def examples_of(results: Results, params: Params, call: Call | None = None) -> Callable[[], Examples]:
    """What `register` needs for a new version. `call`: made in another process, while this one loads MLflow."""
    return examples_later(call, results.bundle, results.prepared, settings(params))


def register(shop: Workshop, results: Results, examples: Callable[[], Examples] | None = None) -> tuple[Version, bool]:
    """The version, and whether it is new."""
    from mlflow.exceptions import MlflowException

    with exclusive(shop.state / LOCK, "the registry from this checkout"):
        version = known = version_of(shop, results)
        if version is None:
            from pspnet.commands.new_version import add

            version = add(shop, results, examples or examples_of(results, shop.params))
        # Of a known one too: the process that added it may have been killed before it came here.
        if version.number not in (shop.versions.alias(CHAMPION), shop.versions.alias(CHALLENGER)):
            shop.versions.set_alias(CHALLENGER, version.number)
        with suppress(MlflowException):  # a person may have deleted the run of a known one
            shop.client.set_tag(version.run_id, "pspnet.version", str(version.number))
        return shop.versions.get(str(version.number)), known is None


def version_of(shop: Workshop, results: Results) -> Version | None:
    return shop.versions.by_bundle(digest(results.bundle)) if results.bundle.is_dir() else None


def as_json(shop: Workshop, results: Results, version: Version, new: bool, promotion: Promotion | None) -> str:
    facts = {
        "model": shop.versions.model,
        "version": version.number,
        "new": new,
        "bundle": version.bundle,
        "test_mean_iou": version.mean_iou,
        "report": str(results.report / PAGE),
        "pages": _pages(shop, version),
    }
    told = {"headline": promotion.headline(shop.versions.model), "promotion": promotion.facts()} if promotion else {}
    return json.dumps(facts | told)


def _pages(shop: Workshop, version: Version) -> dict[str, str]:
    """In MLflow, of the pipeline's run and of each stage's."""
    runs = {name.removeprefix("run."): run for name, run in version.tags.items() if name.startswith("run.")}
    found = {
        name: run_page(shop.client, shop.state, run)
        for name, run in {"pipeline": version.run_id, **runs}.items()
        if not name.endswith(".elsewhere")
    }
    return {name: page for name, page in found.items() if page}


def tell(shop: Workshop, version: Version, new: bool) -> None:
    what = "is now version" if new else "is known as version"
    terminal.out.print(f"{shop.versions.model}: the bundle {version.bundle[:12]} {what} {version.number}")
