"""Stages that another pool's machines run: dvc.yaml says which in `meta.pool`.

A run that a worker has started knows its own pool (PSPNET_POOL, set by its deployment); any other run has no pools,
and every stage runs where it is.
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
from flows.ending import FAILED, Trouble
from flows.remote import push, restore
from flows.stages import Outcome, reproduce
from flows.workplace import PARAMS, Workplace

DEPLOYMENT = "stage"
LOOK_SECONDS = 2.0
COMES_BACK_SECONDS = 90.0  # a crashed run is scheduled again within this, or not at all
WITHDRAWN = "Withdrawn"
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
        files = workplace.read(PARAMS, LOCK, *(source.file for source in sources))
        parameters = {"name": stage.name, "files": files}
        child = started(f"{DEPLOYMENT}/{pool}", stage.name, parameters, pool, workplace, environment)
        (child,) = ended([child])
        if found := failed(child):
            return found
        ran = True
        known = restore(workplace, stage.name, environment)
        if known is not True:
            return known or Trouble(FAILED, f"Pool {pool} has made its results, and the DVC remote has not got them.")
    outcome = reproduce(workplace, stage, environment, pull=True)  # it writes dvc.lock
    if isinstance(outcome, Trouble):
        return outcome
    return Outcome(stage.name, "ran" if ran else "cached", outcome.seconds, pool if ran else "here")


def started(
    deployment: str,
    name: str,
    parameters: dict[str, Any],
    place: str,
    workplace: Workplace,
    environment: Mapping[str, str],
) -> FlowRun:
    """The run of that in a pool. When this run goes on after a crash, the one it had started then.

    `place`: its worktree, on whatever machine, is named so.
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
        number += 1  # an earlier attempt's, which has failed


def ended(runs: Sequence[FlowRun], idle_seconds: float | None = None) -> list[FlowRun]:
    """As they ended.

    `idle_seconds`: if none of them has been at work for so long, those that are left are withdrawn: their worker may
    be waiting for this very run.
    """
    log = get_run_logger()
    log.info("Waits for %s", ", ".join(run.name for run in runs))
    now = {run.id: run for run in runs}
    crashed_since: dict[UUID, float] = {}
    worked_at = time.monotonic()
    with get_client(sync_client=True) as client:
        while True:
            try:
                for run in _going_on(now, crashed_since):
                    now[run.id] = client.read_flow_run(run.id)
            except TransportError:  # this run, too, goes on while its server is away, where no worker takes any
                worked_at = time.monotonic()
            for run in now.values():
                if run.state and run.state.is_crashed():
                    crashed_since.setdefault(run.id, time.monotonic())
                else:
                    crashed_since.pop(run.id, None)
            waiting = _going_on(now, crashed_since)
            if not waiting:
                return list(now.values())
            if not all(run.state and run.state.is_scheduled() for run in waiting):
                worked_at = time.monotonic()
            elif idle_seconds is not None and time.monotonic() - worked_at > idle_seconds:
                log.warning("Nobody has taken %s for %.0f s.", ", ".join(run.name for run in waiting), idle_seconds)
                withdrawn: State[Any] = Cancelled(
                    name=WITHDRAWN, message=f"Nobody has taken it for {idle_seconds:.0f} s."
                )
                with suppress(TransportError):
                    for run in waiting:
                        client.set_flow_run_state(run.id, withdrawn, force=True)
            time.sleep(LOOK_SECONDS)


def _going_on(runs: Mapping[UUID, FlowRun], crashed_since: Mapping[UUID, float]) -> list[FlowRun]:
    """A crashed one is scheduled again, or not at all."""
    long_ago = time.monotonic() - COMES_BACK_SECONDS
    return [
        run
        for run in runs.values()
        if run.state is None or not run.state.is_final()
        or (run.state.is_crashed() and crashed_since.get(run.id, math.inf) > long_ago)
    ]  # fmt: skip


def failed(run: FlowRun) -> Trouble | None:
    if run.state and run.state.is_completed():
        return None
    name, message = (run.state.name, run.state.message) if run.state else (None, None)
    return Trouble(name or FAILED, message or f"{run.name} ended as {name}.")
