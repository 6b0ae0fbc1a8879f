"""What the commands around the registry have at hand."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pspnet import terminal
from pspnet.config.params import Params
from pspnet.registry.audit import Audit
from pspnet.registry.decisions import Decisions
from pspnet.registry.versions import Versions
from pspnet.tracking.connection import connect, reached
from pspnet.tracking.delivery import replay

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


@dataclass(frozen=True)
class Workshop:
    state: Path
    params: Params
    client: "MlflowClient"
    versions: Versions
    audit: Audit
    decisions: Decisions


def open_workshop(state: Path, params: Params) -> Workshop:
    """After whatever the stages could not tell MLflow has been told."""
    for trouble in replay(state):
        terminal.err.print(trouble, style="yellow", markup=False)
    model = params.registry.model
    with reached(state):
        client = connect(state)
        versions = Versions(client, state, model)
        decisions = Decisions(client, state, versions)
        audit = Audit(client, state, versions, tell=lambda text: terminal.err.print(text, style="yellow", markup=False))
    return Workshop(state, params, client, versions, audit, decisions)
