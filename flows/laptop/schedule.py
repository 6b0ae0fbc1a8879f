"""`pspnet schedule`: a long-running process with its own Prefect server, which starts the flows when they are due."""

import asyncio
import logging
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flows.laptop import server
from pspnet.errors import Problem, UserError
from pspnet.machine import terminal
from pspnet.machine.process import exclusive

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

STOPPED = "`pspnet schedule` had stopped."
WAITS = "AwaitingConcurrencySlot"
LEASES = "concurrency_leases"
KEEP_LEASES = {  # lets a server that was killed and restarted know which run occupies the retraining slot
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem"
}
GOES_FIRST_SECONDS = 45  # head start of a run; the runner polls every 10 s, and starting a run takes a few seconds


def schedule(state: Path, cron: str, watch_seconds: int, port: int) -> None:
    with exclusive(state / "schedule.lock", "the schedule of this checkout", seconds=5):
        own = not os.environ.get("PREFECT_API_URL")
        if own:
            shutil.rmtree(Path(os.environ["PREFECT_HOME"]) / LEASES, ignore_errors=True)  # of runs that have ended
            server.start(state, port, server.stored_password(state), KEEP_LEASES)
            os.environ[server.TETHERED] = "1"
        else:
            server.configured_url()
        _serve(state, cron, watch_seconds, own)


def _serve(state: Path, cron: str, watch_seconds: int, own: bool) -> None:
    from prefect import get_client
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.deployments.runner import RunnerDeployment
    from prefect.runner import Runner

    from flows.retrain import retrain
    from flows.team.lost_runs import HEARTBEAT_SECONDS, install
    from flows.watch import watch

    wait, skip = ConcurrencyLimitStrategy.ENQUEUE, ConcurrencyLimitStrategy.CANCEL_NEW
    try:
        deployments = [
            RunnerDeployment.from_flow(
                retrain,
                "retrain",
                cron=cron,
                concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=wait),
            )
        ]
    except ValueError as error:
        raise UserError(Problem("--cron", str(error), 'five fields, such as "0 3 * * 0"')) from None
    if watch_seconds:
        limit = ConcurrencyLimitConfig(limit=1, collision_strategy=skip)
        deployments.append(RunnerDeployment.from_flow(watch, "watch", interval=watch_seconds, concurrency_limit=limit))
    runner = Runner(pause_on_shutdown=True, heartbeat_seconds=HEARTBEAT_SECONDS)
    served: list[Any] = [runner.add_deployment(deployment) for deployment in deployments]
    with get_client(sync_client=True) as client:
        install(client, [f"prefect.deployment.{number}" for number in served], afresh=own)
        if own:
            _resume(client, served)
    address = os.environ["PREFECT_API_URL"].removesuffix("/api")
    watching = f"; checking for new data every {watch_seconds} s" if watch_seconds else ""
    terminal.out.print(f"retrain: {cron}{watching}")
    if own:
        where = state / server.PASSWORD
        terminal.out.print(f"The Prefect UI asks for the password in {where}.", markup=False)
    terminal.out.print(f"See the runs at {address}. Ctrl-C stops this command; run it again to resume.", markup=False)
    # Otherwise, Prefect would log every few seconds that a run is still waiting for another run.
    logging.getLogger("prefect.runner.state_proposer").setLevel(logging.WARNING)
    asyncio.run(runner.start())


def _resume(client: "SyncPrefectClient", deployments: list[UUID]) -> None:
    """Resume the runs that were active when this command was stopped or killed.

    They go before the runs that were waiting for them. No other process executes this server's runs.
    """
    from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType
    from prefect.states import AwaitingConcurrencySlot, AwaitingRetry, Cancelled, Crashed

    def runs(*types: StateType) -> "list[FlowRun]":
        chosen = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types))))
        return client.read_flow_runs(flow_run_filter=chosen)

    for run in runs(StateType.SCHEDULED):
        if run.state_name == WAITS and run.deployment_id in deployments:  # the run it was waiting for goes first
            later = datetime.now(UTC) + timedelta(seconds=GOES_FIRST_SECONDS)
            client.set_flow_run_state(run.id, AwaitingConcurrencySlot(scheduled_time=later), force=True)
    # The automation also reschedules crashed runs, but only if the server lives long enough.
    for run in runs(StateType.RUNNING, StateType.PENDING, StateType.CANCELLING, StateType.CRASHED):
        if run.state_type == StateType.CANCELLING:
            client.set_flow_run_state(run.id, Cancelled(message=STOPPED))
        elif run.deployment_id in deployments:
            client.set_flow_run_state(run.id, AwaitingRetry(message=STOPPED), force=True)
        elif run.state_type != StateType.CRASHED:
            client.set_flow_run_state(run.id, Crashed(message=STOPPED))
    for limit in client.read_global_concurrency_limits():  # the server stores how many slots are taken, but not by whom
        client.update_global_concurrency_limit(limit.name, GlobalConcurrencyLimitUpdate(active_slots=0))
