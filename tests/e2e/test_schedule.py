"""`pspnet schedule` starts runs on time. After a SIGKILL to everything or to Prefect's server, the same run resumes."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from flows.laptop.server import PASSWORD
from pspnet.errors import EXIT_CTRL_C
from tests.e2e.pipeline import environment, write_params
from tests.flows.processes import cmdline, kill_all, left, processes_of
from tests.flows.server import copy_tables
from tests.network import free_port
from tests.waiting import wait_until

pytestmark = [pytest.mark.kills, pytest.mark.timeout(900)]

NEVER = "0 0 29 2 *"
STARTS_SECONDS = 20
ON_TIME_SECONDS = 50
STOPS_SECONDS = 60
GONE_SECONDS = 30
STARTED = "See the runs at"
END = "Finished in state Completed('pspnet-demo: version 1 is now champion')"


@pytest.fixture
def folder(finished: Path, prefects_tables: Path) -> Iterator[Path]:
    """A checkout with finished stages that now has to train longer."""
    write_params(finished, finetune__epochs=30)
    shutil.rmtree(finished / ".pspnet/checkpoints")
    copy_tables(prefects_tables, finished / ".pspnet/prefect")
    yield finished
    kill_all(finished)


@contextmanager
def schedule(folder: Path, port: int, cron: str) -> Iterator[subprocess.Popen[bytes]]:
    command = ["pspnet", "schedule", "--cron", cron, "--watch", "0", "--port", str(port)]
    given = {name: value for name, value in environment(folder).items() if not name.startswith("PREFECT_")}
    given |= {"PSPNET_CHECKPOINT_SECONDS": "0.1", "PREFECT_RUNNER_POLL_FREQUENCY": "1"}
    with (
        (folder / ".schedule.log").open("ab") as log,
        subprocess.Popen(command, cwd=folder, env=given, stdout=log, stderr=log, start_new_session=True) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def every_minute() -> str:
    """A cron line with seconds as its last field, due soon after the server has started (startup takes a while)."""
    return f"* * * * * {int(time.time() + STARTS_SECONDS) % 60}"


def said(folder: Path) -> str:
    return (folder / ".schedule.log").read_text()


def until(met: Callable[[], Any], folder: Path) -> Any:
    return wait_until(met, 300, lambda: said(folder), pause=0.2)  # each check puts some load on the server


def completed(client: SyncPrefectClient, flow_run: UUID) -> FlowRun | None:
    found = client.read_flow_run(flow_run)
    return found if found.state and found.state.is_completed() else None


@contextmanager
def server(folder: Path, port: int) -> Iterator[SyncPrefectClient]:
    password = (folder / ".pspnet" / PASSWORD).read_text().strip()
    with (
        temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api", PREFECT_API_AUTH_STRING: password}),
        get_client(sync_client=True) as client,
    ):
        yield client


def test_a_scheduled_run_starts_on_time_survives_kills_and_stops_on_ctrl_c(folder: Path) -> None:
    port = free_port()
    with schedule(folder, port, every_minute()) as process:
        until(lambda: STARTED in said(folder), folder)
        with server(folder, port) as client:
            started = until(lambda: [one for one in client.read_flow_runs() if one.start_time], folder)[0]
            # This run becomes due while the other is running, as can happen with a run every minute.
            waiter = client.create_flow_run_from_deployment(started.deployment_id)
            until(lambda: client.read_flow_run(waiter.id).state_name == "AwaitingConcurrencySlot", folder)
            until(lambda: list((folder / ".pspnet/checkpoints").glob("finetune-*/state.safetensors")), folder)
            (killed,) = [one for one in client.read_flow_runs() if one.start_time]
            waiting = {one.id for one in client.read_automations()}
        assert killed.start_time and killed.expected_start_time
        assert abs((killed.start_time - killed.expected_start_time).total_seconds()) < ON_TIME_SECONDS
        process.kill()
        process.wait()
    assert left(folder, GONE_SECONDS) == []
    password = folder / ".pspnet" / PASSWORD
    assert f"The Prefect UI asks for the password in {password.relative_to(folder)}." in said(folder)
    assert password.read_text().strip() not in said(folder)

    with schedule(folder, port, NEVER) as process:
        until(lambda: said(folder).count(STARTED) == 2, folder)
        (alone,) = [one for one in processes_of(folder) if "uvicorn" in cmdline(one)]
        alone.kill()
        until(lambda: END in said(folder), folder)
        with server(folder, port) as client:
            # The waiting run may have gone first and left this run nothing to do.
            ended = until(lambda: completed(client, killed.id), folder)
            # Otherwise the server would miss a heartbeat of the killed run, and count the resumed run as crashed.
            assert waiting.isdisjoint(one.id for one in client.read_automations())
        assert ended.run_count == 2
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(STOPS_SECONDS) == EXIT_CTRL_C
    assert left(folder, GONE_SECONDS) == []
