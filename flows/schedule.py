"""`pspnet schedule`: one process to leave running on one machine: Prefect's server, and the flows when they are due."""

import asyncio
import logging
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flows import server
from pspnet import terminal
from pspnet.errors import Problem, UserError
from pspnet.process import exclusive

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

STOPPED = "`pspnet schedule` had stopped."
WAITS = "AwaitingConcurrencySlot"
LEASES = "concurrency_leases"
REMEMBERS = {  # who has the one place for retrainings, should the server be killed alone
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem"
}
GOES_FIRST_SECONDS = 45  # the runner looks for runs every 10 s, and on a busy machine takes some to start one


def schedule(state: Path, cron: str, watch_seconds: int, port: int) -> None:
    with exclusive(state / "schedule.lock", "the schedule of this checkout", seconds=5):
        own = not os.environ.get("PREFECT_API_URL")
        if own:
            shutil.rmtree(Path(os.environ["PREFECT_HOME"]) / LEASES, ignore_errors=True)  # whose runs are over
            server.start(state, port, server.kept_password(state), REMEMBERS)
            os.environ[server.TETHERED] = "1"
        else:
            server.named()
        _serve(state, cron, watch_seconds, own)


def _serve(state: Path, cron: str, watch_seconds: int, own: bool) -> None:
    from prefect import get_client
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.deployments.runner import RunnerDeployment
    from prefect.runner import Runner

    from flows.automations import HEARTBEAT_SECONDS, install
    from flows.retrain import retrain
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
        one = ConcurrencyLimitConfig(limit=1, collision_strategy=skip)
        deployments.append(RunnerDeployment.from_flow(watch, "watch", interval=watch_seconds, concurrency_limit=one))
    runner = Runner(pause_on_shutdown=True, heartbeat_seconds=HEARTBEAT_SECONDS)
    served: list[Any] = [runner.add_deployment(one) for one in deployments]
    with get_client(sync_client=True) as client:
        install(client, [f"prefect.deployment.{one}" for one in served], afresh=own)
        if own:
            _go_on(client, served)
    address = os.environ["PREFECT_API_URL"].removesuffix("/api")
    looks = f"; new data are looked for every {watch_seconds} s" if watch_seconds else ""
    terminal.out.print(f"retrain: {cron}{looks}")
    if own:
        where = state / server.PASSWORD
        terminal.out.print(f"Prefect's pages ask for a password: the line in {where}.", markup=False)
    terminal.out.print(f"{address} shows what runs. Ctrl-C stops; the same command goes on.", markup=False)
    # It would tell every few seconds that a run still waits for another.
    logging.getLogger("prefect.runner.state_proposer").setLevel(logging.WARNING)
    asyncio.run(runner.start())


def _go_on(client: "SyncPrefectClient", deployments: list[UUID]) -> None:
    """With what was at work when this command was stopped or killed, and before what waited for it.

    Nobody else runs anything of this server.
    """
    from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType
    from prefect.states import AwaitingConcurrencySlot, AwaitingRetry, Cancelled, Crashed

    def runs(*types: StateType) -> "list[FlowRun]":
        chosen = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types))))
        return client.read_flow_runs(flow_run_filter=chosen)

    for run in runs(StateType.SCHEDULED):
        if run.state_name == WAITS and run.deployment_id in deployments:  # its place is that of the run it waited for
            later = datetime.now(UTC) + timedelta(seconds=GOES_FIRST_SECONDS)
            client.set_flow_run_state(run.id, AwaitingConcurrencySlot(scheduled_time=later), force=True)
    # What has crashed is scheduled again by the automation, if the server lives long enough.
    for run in runs(StateType.RUNNING, StateType.PENDING, StateType.CANCELLING, StateType.CRASHED):
        if run.state_type == StateType.CANCELLING:
            client.set_flow_run_state(run.id, Cancelled(message=STOPPED))
        elif run.deployment_id in deployments:
            client.set_flow_run_state(run.id, AwaitingRetry(message=STOPPED), force=True)
        elif run.state_type != StateType.CRASHED:
            client.set_flow_run_state(run.id, Crashed(message=STOPPED))
    for limit in client.read_global_concurrency_limits():  # the server forgets who has a place, not that it is taken
        client.update_global_concurrency_limit(limit.name, GlobalConcurrencyLimitUpdate(active_slots=0))
