"""Stages that another pool's machines run: dvc.yaml says which in `meta.pool`.

A run that a worker has started knows its own pool (PSPNET_POOL, set by its deployment); any other run has no pools,
and every stage runs where it is.
"""

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from httpx import TransportError
from prefect import get_client, get_run_logger
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.runtime import flow_run

from flows.dag import Source, Stage
from flows.ending import FAILED, Trouble
from flows.remote import push, restore
from flows.stages import Outcome, reproduce
from flows.workplace import PARAMS, Workplace

DEPLOYMENT = "stage"
LOOK_SECONDS = 2.0
COMES_BACK_SECONDS = 90.0  # a crashed run is scheduled again within this, or not at all
LOCK = "dvc.lock"


def elsewhere(stage: Stage) -> str | None:
    """The pool whose work this stage is, if it is not that of this run."""
    own = os.environ.get("PSPNET_POOL")
    return stage.pool if own and stage.pool != own else None


def reproduce_elsewhere(
    workplace: Workplace, stage: Stage, pool: str, sources: Sequence[Source], environment: Mapping[str, str]
) -> Outcome | Trouble:
    known = restore(workplace, stage.name, environment)
    if isinstance(known, Trouble):
        return known
    ran = False
    if not known:
        if found := push(workplace, environment):
            return found
        child = _ended(_started(workplace, stage, pool, sources, environment))
        if child.state is None or not child.state.is_completed():
            name, message = (child.state.name, child.state.message) if child.state else (None, None)
            return Trouble(name or FAILED, message or f"It ended in pool {pool} as {name}.")
        ran = True
        known = restore(workplace, stage.name, environment)
        if known is not True:
            return known or Trouble(FAILED, f"Pool {pool} has made its results, and the DVC remote has not got them.")
    outcome = reproduce(workplace, stage, environment, pull=True)  # it writes dvc.lock
    if isinstance(outcome, Trouble):
        return outcome
    return Outcome(stage.name, "ran" if ran else "cached", outcome.seconds, pool if ran else "here")


def _started(
    workplace: Workplace, stage: Stage, pool: str, sources: Sequence[Source], environment: Mapping[str, str]
) -> FlowRun:
    """The run of the stage in the other pool. When this run goes on after a crash, the one it had started then."""
    root = str(flow_run.id)
    files = workplace.read(PARAMS, LOCK, *(source.file for source in sources))
    identity = {name: value for name, value in environment.items() if name.startswith("PSPNET_FLOW_")}
    place = {"PSPNET_COMMIT": workplace.commit(), "PSPNET_RUN": f"{root}-{pool}"}
    number = 0
    while True:
        run: FlowRun = run_deployment(  # type: ignore[assignment]
            f"{DEPLOYMENT}/{pool}",
            parameters={"name": stage.name, "files": files},
            idempotency_key=f"{root}:{stage.name}:{number}",
            flow_run_name=f"{stage.name} of {flow_run.name}",
            job_variables={"env": {**place, **identity}},
            timeout=0,
        )
        if run.state is None or not run.state.is_final() or run.state.is_completed() or run.state.is_crashed():
            return run
        number += 1  # an earlier attempt's, which has failed


def _ended(run: FlowRun) -> FlowRun:
    log = get_run_logger()
    log.info("Waits for %s", run.name)
    crashed_since: float | None = None
    with get_client(sync_client=True) as client:
        while True:
            with suppress(TransportError):  # this run, too, goes on while its server is away
                run = client.read_flow_run(run.id)
            state = run.state
            if state and state.is_final() and not state.is_crashed():
                return run
            if state and state.is_crashed():
                crashed_since = crashed_since or time.monotonic()
                if time.monotonic() - crashed_since > COMES_BACK_SECONDS:
                    return run
            else:
                crashed_since = None
            time.sleep(LOOK_SECONDS)
