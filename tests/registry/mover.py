"""A process that moves the champion alias and can fail at any call."""

import os
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
from sqlalchemy.orm import configure_mappers

from pspnet.errors import PspnetError, UserError
from pspnet.registry.audit import Audit
from pspnet.registry.records import Move, ProposedMove
from pspnet.registry.versions import Versions
from pspnet.tracking.connection import connect

configure_mappers()  # this takes a second, which forked processes save


class Failing:
    """An MLflow client that sends its own process a signal after a call. Nothing is written between calls, so these
    moments are enough.
    """

    def __init__(self, client: Any, moment: int | None, signal: int) -> None:
        self._client, self._left, self._signal = client, moment, signal

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            if self._left == 0:
                os.kill(os.getpid(), self._signal)
            if self._left is not None:
                self._left -= 1
            return result

        return call


def move(
    uri: str, state: Path, model: str, version: int, expected: int | None, moment: int | None, signal: int,
    talk: Connection,
) -> None:  # fmt: skip
    """Wait for a message, then make `version` champion in place of `expected`. With None, any champion is replaced."""
    os.environ["MLFLOW_TRACKING_URI"] = uri
    client: Any = Failing(connect(state), moment, signal)
    output: list[str] = []
    audit = Audit(client, state, Versions(client, state, model), output.append)

    talk.send("ready")
    talk.recv()
    try:
        output.append(promote(audit, version, expected, output))
    except PspnetError as error:
        output.append(str(error))
    talk.send("\n".join(output))


def promote(audit: Audit, version: int, expected: int | None, output: list[str]) -> str:
    for position in audit.attempts():
        if expected not in (None, position.champion):
            raise UserError([], f"stopped: the champion is {position.champion}")
        applied = audit.apply(ProposedMove("promotion", version, f"it beat {position.champion}"), position)
        if isinstance(applied, Move):
            return f"moved {applied.number} from {applied.from_version} to {applied.to_version}"
        output.append(applied.why)
    raise audit.busy()
