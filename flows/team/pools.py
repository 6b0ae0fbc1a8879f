"""Runs a stage in another pool, which is given by `meta.pool` in dvc.yaml.

A run that was started by a worker knows its pool from PSPNET_POOL, which the deployment sets. Any other run uses no
pools and runs every stage itself.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

from httpx import TransportError
from prefect import get_client, get_run_logger
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.runtime import flow_run
from prefect.states import Cancelled

from flows.dag import Source, Stage
from flows.failure import FAILED, Failure
from flows.remote import push, restore
from flows.tasks import StageResult, reproduce
from flows.workplace import PARAMS, Workplace
from pspnet.machine.worktree import DVC_LOCK

DEPLOYMENT = "stage"
POLL_SECONDS = 2.0
COMES_BACK_SECONDS = 90.0  # a crashed run that is not rescheduled within this time will never be
WITHDRAWN = "Withdrawn"


def other_pool(stage: Stage) -> str | None:
    """The stage's pool if it is not the pool of this run, otherwise None."""
    own = os.environ.get("PSPNET_POOL")
    return stage.pool if own and stage.pool != own else None


def reproduce_in_pool(
    workplace: Workplace, stage: Stage, pool: str, sources: Sequence[Source], environment: Mapping[str, str]
) -> StageResult | Failure:
    known = restore(workplace, stage.name, environment)
    if isinstance(known, Failure):
        return known
    ran = False
    if not known:
        if failure := push(workplace, environment):
            return failure
        files = workplace.read(PARAMS, DVC_LOCK, *(source.file for source in sources))
        parameters = {"name": stage.name, "files": files}
        run = start_run(f"{DEPLOYMENT}/{pool}", stage.name, parameters, pool, workplace, environment)
        (run,) = wait_for([run])
        if failure := run_failure(run):
            return failure
        ran = True
        known = restore(workplace, stage.name, environment)
        if known is not True:
            return known or Failure(FAILED, f"Pool {pool} ran the stage, but its results are not in the DVC remote.")
    result = reproduce(workplace, stage, environment, pull=True)  # writes dvc.lock
    if isinstance(result, Failure):
        return result
    return StageResult(stage.name, "ran" if ran else "cached", result.seconds, pool if ran else "here")


def start_run(
    deployment: str,
    name: str,
    parameters: dict[str, Any],
    place: str,
    workplace: Workplace,
    environment: Mapping[str, str],
) -> FlowRun:
    """Start another run in a pool. If this run resumes after a crash, returns the run that it had started before.

    `place`: the name of the other run's worktree, on whichever machine it runs.
    """
    root = str(flow_run.id)
    work = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()
    identity = {name: value for name, value in environment.items() if name.startswith("PSPNET_FLOW_")}
    own = {"PSPNET_COMMIT": workplace.commit(), "PSPNET_RUN": f"{root}-{place}"}
    number = 0
    while True:
        run: FlowRun = run_deployment(  # type: ignore[assignment]
            deployment,
            parameters=parameters,
            idempotency_key=f"{root}:{name}:{work}:{number}",
            flow_run_name=f"{name} of {flow_run.name}",
            job_variables={"env": {**own, **identity}},
            timeout=0,
        )
        if run.state is None or not run.state.is_final() or run.state.is_completed() or run.state.is_crashed():
            return run
        number += 1  # the run that was found belongs to an earlier attempt and has failed


def wait_for(runs: Sequence[FlowRun], idle_seconds: float | None = None) -> list[FlowRun]:
    """Wait for the runs. Returns them in their final states.

    `idle_seconds`: withdraw the remaining runs if none has been active for this long, because the workers may all be
    waiting for this run.
    """
    log = get_run_logger()
    log.info("Waiting for %s", ", ".join(run.name for run in runs))
    now = {run.id: run for run in runs}
    crashed_since: dict[UUID, float] = {}
    worked_at = time.monotonic()
    with get_client(sync_client=True) as client:
        while True:
            try:
                for run in _unfinished(now, crashed_since):
                    now[run.id] = client.read_flow_run(run.id)
            except TransportError:  # the server is down: this run keeps waiting, and no worker can take a run
                worked_at = time.monotonic()
            for run in now.values():
                if run.state and run.state.is_crashed():
                    crashed_since.setdefault(run.id, time.monotonic())
                else:
                    crashed_since.pop(run.id, None)
            waiting = _unfinished(now, crashed_since)
            if not waiting:
                return list(now.values())
            if not all(run.state and run.state.is_scheduled() for run in waiting):
                worked_at = time.monotonic()
            elif idle_seconds is not None and time.monotonic() - worked_at > idle_seconds:
                names = ", ".join(run.name for run in waiting)
                log.warning("No worker took %s within %.0f s; withdrawing.", names, idle_seconds)
                withdrawn: State[Any] = Cancelled(
                    name=WITHDRAWN, message=f"No worker took it within {idle_seconds:.0f} s."
                )
                with suppress(TransportError):
                    for run in waiting:
                        client.set_flow_run_state(run.id, withdrawn, force=True)
            time.sleep(POLL_SECONDS)


def _unfinished(runs: Mapping[UUID, FlowRun], crashed_since: Mapping[UUID, float]) -> list[FlowRun]:
    """The runs that may still change state. They include recently crashed runs, which may be rescheduled."""
    long_ago = time.monotonic() - COMES_BACK_SECONDS
    return [
        run
        for run in runs.values()
        if run.state is None or not run.state.is_final()
        or (run.state.is_crashed() and crashed_since.get(run.id, math.inf) > long_ago)
    ]  # fmt: skip


def run_failure(run: FlowRun) -> Failure | None:
    if run.state and run.state.is_completed():
        return None
    name, message = (run.state.name, run.state.message) if run.state else (None, None)
    return Failure(name or FAILED, message or f"{run.name} finished with state {name}.")
