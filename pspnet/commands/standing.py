"""Whether `pspnet register --promote` would change nothing: `pspnet retrain` asks before it starts a flow."""

from mlflow.exceptions import MlflowException

from pspnet.commands.gate import Data, answered
from pspnet.commands.promote import LOCK, Promotion
from pspnet.commands.register import Results, version_of
from pspnet.commands.workshop import Workshop
from pspnet.process import exclusive
from pspnet.registry.versions import CHALLENGER, CHAMPION, Version


def headline(shop: Workshop, results: Results) -> str | None:
    """What `pspnet register --promote` would say; None: it would change something, or has to decide first."""
    with exclusive(shop.state / LOCK, "the registry from this checkout"):
        version = version_of(shop, results)
        if version is None or not _run_names(shop, version):
            return None
        shop.audit.settle()
        promotion = _promotion(shop, version, Data(results.prepared, results.report))
    return promotion.headline(shop.versions.model) if promotion else None


def _promotion(shop: Workshop, version: Version, data: Data) -> Promotion | None:
    """The same question has been asked, and its answer has been acted upon."""
    champion = shop.versions.alias(CHAMPION)
    if champion == version.number:
        return Promotion("is champion", version.number)
    if champion is None or shop.versions.alias(CHALLENGER) != version.number:
        return None
    decision = answered(shop, version, shop.versions.get(str(champion)), data)
    if decision is None:
        return None
    if decision.outcome != "passed":
        return Promotion(decision.outcome, version.number, decision)
    waits = shop.params.promotion.approval == "manual" and version.tags.get("approval") == "waiting"
    return Promotion("waiting", version.number, decision) if waits else None


def _run_names(shop: Workshop, version: Version) -> bool:
    """Whether the pipeline's run says which version it became."""
    try:
        return shop.client.get_run(version.run_id).data.tags.get("pspnet.version") == str(version.number)
    except MlflowException:  # a person may have deleted it
        return True
