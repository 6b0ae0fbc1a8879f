"""`pspnet schedule`: one process to leave running on one machine: Prefect's server, and the flows when they are due."""

import asyncio
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pspnet import terminal
from pspnet.errors import Problem, UserError
from pspnet.process import exclusive
from pspnet.worktree import tethered

STARTS_SECONDS = 120
# `prefect server start` starts this, too, and leaves it behind when it is killed.
SERVER = (
    "uvicorn",
    "--factory",
    "prefect.server.api.server:create_app",
    "--host",
    "127.0.0.1",
    "--log-level",
    "warning",
)


def schedule(state: Path, cron: str, watch_seconds: int, port: int) -> None:
    with exclusive(state / "schedule.lock", "the schedule of this checkout", seconds=5):
        if os.environ.get("PREFECT_API_URL"):
            _serve(cron, watch_seconds)
            return
        with _server(state, port) as address:
            os.environ["PREFECT_API_URL"] = f"{address}/api"  # before Prefect is loaded, which reads it then
            _serve(cron, watch_seconds)


@contextmanager
def _server(state: Path, port: int) -> Iterator[str]:
    address = f"http://127.0.0.1:{port}"
    log = state / "prefect-server.log"
    if _answers(address):
        fix = "Stop it, give another --port, or export PREFECT_API_URL to use it."
        raise UserError(Problem(address, "has a server already", fix=fix))
    with log.open("ab") as output:
        environment = os.environ | {"PREFECT__SERVER_FINAL": "1", "PREFECT_UI_API_URL": f"{address}/api"}
        process = subprocess.Popen(
            tethered(*SERVER, "--port", str(port)), env=environment, stdout=output, stderr=output,
            start_new_session=True,  # Ctrl-C: the flows end first, and tell it so
        )  # fmt: skip
    try:
        deadline = time.monotonic() + STARTS_SECONDS
        while not _answers(address):
            if process.poll() is not None or time.monotonic() > deadline:
                raise UserError(Problem("Prefect's server", "does not start", fix=f"{log} says why."))
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/api/health", timeout=2) as answer:  # noqa: S310  our own http
            return bool(answer.status == 200)
    except OSError:
        return False


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
