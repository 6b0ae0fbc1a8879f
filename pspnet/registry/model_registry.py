"""The registry of one model, opened: versions, audit and decisions."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pspnet.config.params import Params
from pspnet.machine import terminal
from pspnet.registry.audit import Audit
from pspnet.registry.decisions import Decisions
from pspnet.registry.versions import Version, Versions
from pspnet.tracking.backlog import replay
from pspnet.tracking.connection import connect, fail_fast

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


@dataclass(frozen=True)
class ModelRegistry:
    state: Path
    params: Params
    client: "MlflowClient"
    versions: Versions
    audit: Audit
    decisions: Decisions

    def folder(self, version: Version) -> Path:
        """Return the local folder of a version's files, after checking them. Warn once if the version has no seal."""
        folder = self.versions.folder(version)
        self.audit.check(version)
        warned = folder.with_name("told")
        if not version.content and not warned.exists():
            name, fix = f"{self.versions.model} version {version.number}", f"pspnet models seal {version.number}"
            text = f"{name} has no seal, so changes to its files would go unnoticed. `{fix}` seals it."
            terminal.err.print(text, style="yellow", markup=False)
            warned.touch()
        return folder


def open_registry(state: Path, params: Params) -> ModelRegistry:
    """Open the registry, after sending MLflow everything that stages could not send earlier."""
    for trouble in replay(state):
        terminal.err.print(trouble, style="yellow", markup=False)
    model = params.registry.model
    with fail_fast(state):
        client = connect(state)
        versions = Versions(client, state, model)
        decisions = Decisions(client, state, versions)
        audit = Audit(client, state, versions, warn=lambda text: terminal.err.print(text, style="yellow", markup=False))
    return ModelRegistry(state, params, client, versions, audit, decisions)
