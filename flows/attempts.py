"""One attempt at a flow run: in its workplace, with a person's mistakes told without a traceback."""

import json
import logging
import os
import re
import signal
from collections.abc import Callable, Mapping
from typing import Any

from prefect import get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.settings import PREFECT_UI_URL
from prefect.states import Completed, Failed

from flows.due import superseded
from flows.ending import BUSY, FAILED
from flows.server import TETHERED
from flows.workplace import Workplace
from pspnet.errors import Busy, PspnetError
from pspnet.process import die_with_parent

NOT_LAID_OUT = "PSPNET_NOT_LAID_OUT"  # in the environment of a run that has no worktree: why
MAX_ATTEMPTS = 10  # at one run: what died that often will die again
OF_THE_ENGINE = re.compile("exited with unexpected exception|^Finished in state Failed")

Work = Callable[[Workplace, dict[str, str]], State[Any]]


class Over(Exception):
    """A task has failed, and with it the run."""

    def __init__(self, state: State[Any]) -> None:
        super().__init__(state.message)
        self.state = state


def attempt(work: Work, overrides: Mapping[str, Any] | None = None) -> State[Any]:
    """`work` gets the workplace and the environment of its commands."""
    if os.environ.get(TETHERED):
        die_with_parent(signal.SIGKILL)
    log = get_run_logger()
    attempts = flow_run.run_count or 1
    if attempts > MAX_ATTEMPTS:
        return Failed(message=f"It has crashed {MAX_ATTEMPTS} times, and is not tried again.")
    if attempts == 1 and (reason := superseded()):
        return Completed(name="Skipped", message=reason)
    if reason := os.environ.get(NOT_LAID_OUT):
        log.error(reason)
        return _failed(FAILED, reason)
    try:
        workplace = Workplace.here()
        with workplace.claimed(log.info):
            workplace.set_params(overrides or {})
            return work(workplace, workplace.environment(**_identity(overrides or {})))
    except Over as over:
        return _failed(over.state.name, over.state.message)
    except PspnetError as error:
        log.error(str(error))
        return _failed(BUSY if isinstance(error, Busy) else FAILED, str(error))


def _failed(name: str | None, message: str | None) -> State[Any]:
    """Without what Prefect's engine logs of every failure, with a traceback of its own: the message has been told."""
    for logger in ("prefect.engine", "prefect.flow_runs"):
        logging.getLogger(logger).addFilter(lambda record: not OF_THE_ENGINE.search(record.getMessage()))
    return Failed(name=name, message=message)


def done(state: State[Any]) -> Any:
    """What a task has returned; the run is over if it has failed."""
    if not state.is_completed():
        raise Over(state)
    return state.result()


def _identity(overrides: Mapping[str, Any]) -> dict[str, str]:
    """By this the runs in MLflow and the version lead back here."""
    facts = {"PSPNET_FLOW_RUN": str(flow_run.id)}
    if pages := PREFECT_UI_URL.value():
        facts["PSPNET_FLOW_RUN_PAGE"] = f"{pages}/runs/flow-run/{flow_run.id}"
    if overrides:
        facts["PSPNET_FLOW_OVERRIDES"] = json.dumps(dict(overrides), sort_keys=True)
    given = {name: value for name, value in os.environ.items() if name.startswith("PSPNET_FLOW_")}
    return given or facts  # a stage is run for another run, and leads there
