"""One attempt at a flow run, in its workspace. A user's mistake makes the run fail with a message, not a traceback."""

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

from flows.failure import BUSY, FAILED
from flows.laptop.server import TETHERED
from flows.missed_runs import newer_due_run
from flows.workplace import Workplace
from pspnet.errors import Busy, PspnetError
from pspnet.machine.process import die_with_parent

NOT_LAID_OUT = "PSPNET_NOT_LAID_OUT"  # environment variable that says why the run's worktree could not be created
MAX_ATTEMPTS = 10  # a run that has crashed this many times is expected to crash again
ENGINE_MESSAGES = re.compile("exited with unexpected exception|^Finished in state Failed")

Work = Callable[[Workplace, dict[str, str]], State[Any]]


class TaskFailed(Exception):
    """A task failed, so the run fails too."""

    def __init__(self, state: State[Any]) -> None:
        super().__init__(state.message)
        self.state = state


def attempt(work: Work, overrides: Mapping[str, Any] | None = None) -> State[Any]:
    """Call `work` with the workspace and the environment for commands. Returns the final state of the run."""
    if os.environ.get(TETHERED):
        die_with_parent(signal.SIGKILL)
    log = get_run_logger()
    attempts = flow_run.run_count or 1
    if attempts > MAX_ATTEMPTS:
        return Failed(message=f"The run crashed {MAX_ATTEMPTS} times. It will not be retried.")
    if attempts == 1 and (reason := newer_due_run()):
        return Completed(name="Skipped", message=reason)
    if reason := os.environ.get(NOT_LAID_OUT):
        log.error(reason)
        return _failed(FAILED, reason)
    try:
        workplace = Workplace.here()
        with workplace.claimed(log.info):
            workplace.set_params(overrides or {})
            return work(workplace, workplace.environment(**_identity(overrides or {})))
    except TaskFailed as failed:
        return _failed(failed.state.name, failed.state.message)
    except PspnetError as error:
        log.error(str(error))
        return _failed(BUSY if isinstance(error, Busy) else FAILED, str(error))


def _failed(name: str | None, message: str | None) -> State[Any]:
    """A failed state. Prefect's engine is kept from logging a traceback, because the message is already in the log."""
    for logger in ("prefect.engine", "prefect.flow_runs"):
        logging.getLogger(logger).addFilter(lambda record: not ENGINE_MESSAGES.search(record.getMessage()))
    return Failed(name=name, message=message)


def result_of(state: State[Any]) -> Any:
    """The value that a task returned. Raises TaskFailed if the task failed."""
    if not state.is_completed():
        raise TaskFailed(state)
    return state.result()


def _identity(overrides: Mapping[str, Any]) -> dict[str, str]:
    """The environment variables that link MLflow runs and model versions to this flow run."""
    facts = {"PSPNET_FLOW_RUN": str(flow_run.id)}
    if pages := PREFECT_UI_URL.value():
        facts["PSPNET_FLOW_RUN_PAGE"] = f"{pages}/runs/flow-run/{flow_run.id}"
    if overrides:
        facts["PSPNET_FLOW_OVERRIDES"] = json.dumps(dict(overrides), sort_keys=True)
    given = {name: value for name, value in os.environ.items() if name.startswith("PSPNET_FLOW_")}
    return given or facts  # if this run was started by another run, the links point to the other run
