"""A process that moves the champion alias, in which the power may fail."""

import os
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
from sqlalchemy.orm import configure_mappers

from pspnet.errors import PspnetError, UserError
from pspnet.registry.audit import Audit, Wish
from pspnet.registry.versions import Versions
from pspnet.tracking.connection import connect

configure_mappers()  # it takes a second, which processes that are forked from this one save


class Failing:
    """An MLflow client that sends its own process a signal after a call. What is done between calls leaves nothing."""

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
    """Wait for a word, then make `version` champion instead of `expected` (None: of whatever there is)."""
    os.environ["MLFLOW_TRACKING_URI"] = uri
    client: Any = Failing(connect(state), moment, signal)
    told: list[str] = []
    audit = Audit(client, state, Versions(client, state, model), told.append)

    def decide(champion: int) -> Wish:
        if expected not in (None, champion):
            raise UserError([], f"stopped: the champion is {champion}")
        return Wish("promotion", version, f"it beat {champion}")

    talk.send("ready")
    talk.recv()
    try:
        made = audit.move(decide, told.append)
        told.append(f"moved {made.number} from {made.from_version} to {made.to_version}")
    except PspnetError as error:
        told.append(str(error))
    talk.send("\n".join(told))
