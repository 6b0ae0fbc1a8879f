"""`pspnet schedule`: one process to leave running on one machine: Prefect's server, and the flows when they are due."""

import asyncio
import os
from pathlib import Path

from flows import server
from pspnet import terminal
from pspnet.errors import Problem, UserError
from pspnet.process import exclusive


def schedule(state: Path, cron: str, watch_seconds: int, port: int) -> None:
    with exclusive(state / "schedule.lock", "the schedule of this checkout", seconds=5):
        if not os.environ.get("PREFECT_API_URL"):
            server.start(state, port, {"PREFECT_UI_API_URL": f"http://127.0.0.1:{port}/api"})
        _serve(cron, watch_seconds)


def _serve(cron: str, watch_seconds: int) -> None:
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
    found = [f"prefect.deployment.{runner.add_deployment(one)}" for one in deployments]
    with get_client(sync_client=True) as client:
        install(client, found)
    address = os.environ["PREFECT_API_URL"].removesuffix("/api")
    looks = f"; new data are looked for every {watch_seconds} s" if watch_seconds else ""
    terminal.out.print(f"retrain: {cron}{looks}")
    terminal.out.print(f"{address} shows what runs. Ctrl-C stops; the same command goes on.", markup=False)
    asyncio.run(runner.start())
