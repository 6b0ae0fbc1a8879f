"""What the commands around the registry have at hand."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pspnet import terminal
from pspnet.config.params import Params
from pspnet.registry.audit import Audit
from pspnet.registry.decisions import Decisions
from pspnet.registry.versions import Version, Versions
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

    def folder(self, version: Version) -> Path:
        """The files of a version on this machine, as they were registered and promoted; told once if nobody knows."""
        folder = self.versions.folder(version)
        self.audit.check(version)
        told = folder.with_name("told")
        if not version.content and not told.exists():
            name, fix = f"{self.versions.model} version {version.number}", f"pspnet models seal {version.number}"
            text = f"{name} has no seal: if somebody changes its files, nobody will know. `{fix}` seals it."
            terminal.err.print(text, style="yellow", markup=False)
            told.touch()
        return folder


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
