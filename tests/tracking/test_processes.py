"""Stages with a real sender and a real server. Any of the three can be down, hang or be killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from mlflow.tracking import MlflowClient

from pspnet.errors import Interrupted, Problem, UserError
from pspnet.tracking.attempt import PATIENCE_SECONDS, stage_run
from pspnet.tracking.backlog import journals, replay
from pspnet.tracking.delivery import Delivery
from pspnet.tracking.receipt import Receipt
from pspnet.tracking.run import StageRun
from tests.parameters import ROOT, demo_params
from tests.raw.rawdata import write
from tests.tracking.runs import artifacts, history, losses, record_epochs, runs, the_run
from tests.tracking.server import Server
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

PYTHON = sys.executable  # the real Python, before the fixture `warm` replaces it
NOT_WAITED = PATIENCE_SECONDS / 2  # a stage that waits for its sender takes at least this long


@pytest.fixture
def warm(warm_python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make senders start instantly, for tests that suspend none."""
    monkeypatch.setattr(sys, "executable", warm_python)


@pytest.fixture
def client(server: Server) -> MlflowClient:
    return MlflowClient(server.uri)


@contextmanager
def stage(state: Path, model: str, warnings: list[str], out: Path | None = None) -> Iterator[StageRun]:
    """Run a stage that has already identified its work."""
    params = demo_params(registry__model=model)
    with stage_run(state, "finetune", params, ("finetune", "runtime"), out, warnings.append) as run:
        run.identify(training="digest")
        yield run


def arrived(client: MlflowClient, model: str) -> int:
    return sum(len(history(client, run, "loss")) for run in runs(client, model))


def senders() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if child.is_running() and "pspnet.tracking.sender" in child.cmdline()]


@pytest.mark.usefixtures("warm")
def test_a_stage_and_its_sender_leave_a_run_and_no_process(client: MlflowClient, state: Path, tmp_path: Path) -> None:
    warnings: list[str] = []
    with stage(state, "whole-process", warnings, tmp_path / "record.json") as run:
        record_epochs(run, 1, 3)
        run.artifacts(write(tmp_path / "history.csv", "epoch,loss\n"))
    assert (warnings, senders()) == ([], [])
    found = the_run(client, "whole-process")
    assert (history(client, found, "loss"), found.info.status) == (losses(3), "FINISHED")
    assert artifacts(client, found) == {"history.csv"}
    assert found.data.metrics["system/cpu_utilization_percentage"] >= 0
    assert json.loads((tmp_path / "record.json").read_text())["run_id"] == found.info.run_id


@pytest.mark.usefixtures("warm")
def test_a_missing_database_is_created(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    warnings: list[str] = []
    with stage(state, "new", warnings) as run:
        record_epochs(run, 1, 3)
    assert warnings == []
    client = MlflowClient(f"sqlite:///{state}/mlflow.db")
    assert history(client, the_run(client, "new"), "loss") == losses(3)


@pytest.mark.usefixtures("warm")
def test_a_stage_that_fails_before_identify_has_no_run(client: MlflowClient, state: Path) -> None:
    warnings: list[str] = []
    started = time.monotonic()
    params = demo_params(registry__model="early")
    with pytest.raises(UserError), stage_run(state, "prepare", params, ("prepare",), None, warnings.append):
        raise UserError(Problem("data/raw", "is missing"))
    assert time.monotonic() - started < NOT_WAITED
    assert (warnings, runs(client, "early"), journals(state), senders()) == ([], [], [], [])


@pytest.mark.usefixtures("warm")
def test_a_server_that_is_down_for_a_while_misses_nothing(client: MlflowClient, server: Server, state: Path) -> None:
    warnings: list[str] = []
    with stage(state, "away", warnings) as run:
        record_epochs(run, 1, 2)
        wait_until(lambda: arrived(client, "away") == 2)
        server.stop()
        record_epochs(run, 3, 4)
        (folder,) = journals(state)
        wait_until(lambda: Receipt.of(folder).trouble)
        server.start()
        wait_until(lambda: arrived(client, "away") == 4)
        record_epochs(run, 5, 5)
    assert warnings == []
    found = the_run(client, "away")
    assert (history(client, found, "loss"), found.info.status) == (losses(5), "FINISHED")


@pytest.mark.usefixtures("warm")
def test_a_server_that_is_down_at_the_end_gets_the_remaining_records_later(
    client: MlflowClient, server: Server, state: Path, tmp_path: Path
) -> None:
    warnings: list[str] = []
    with stage(state, "later", warnings, tmp_path / "record.json") as run:
        record_epochs(run, 1, 2)
        wait_until(lambda: runs(client, "later"))
        server.stop()
        record_epochs(run, 3, 4)
        run.artifacts(write(tmp_path / "history.csv", "epoch,loss\n"))
        (tmp_path / "history.csv").unlink()
        ended = time.monotonic()
    assert time.monotonic() - ended < NOT_WAITED
    (line,) = warnings
    assert line.startswith("finetune: finetune-")
    assert "not reached MLflow at" in line
    assert line.endswith("and sent with the next run.")
    server.start()
    found = the_run(client, "later")
    assert json.loads((tmp_path / "record.json").read_text())["run_id"] == found.info.run_id
    assert replay(state) == []
    found = the_run(client, "later")
    assert (history(client, found, "loss"), found.info.status) == (losses(4), "FINISHED")
    assert artifacts(client, found) == {"history.csv"}


@pytest.mark.usefixtures("warm")
def test_a_stage_does_not_wait_for_a_server_that_was_never_there(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    warnings: list[str] = []
    with stage(state, "never", warnings) as run:
        record_epochs(run, 1, 2)
        ended = time.monotonic()
    assert time.monotonic() - ended < NOT_WAITED
    (line,) = warnings
    assert "Connection refused" in line
    assert senders() == []


@pytest.mark.usefixtures("warm")
def test_a_sender_that_dies_does_not_disturb_the_stage(client: MlflowClient, state: Path) -> None:
    warnings: list[str] = []
    with stage(state, "dies", warnings) as run:
        record_epochs(run, 1, 2)
        wait_until(lambda: runs(client, "dies"))
        (sender,) = senders()
        sender.kill()
        record_epochs(run, 3, 4)
    (line,) = warnings
    assert "the sender exited with status -9" in line
    with stage(state, "dies", warnings) as run:
        record_epochs(run, 1, 5)
    assert len(warnings) == 1
    assert history(client, the_run(client, "dies"), "loss") == losses(5)


def test_a_sender_that_hangs_does_not_hold_up_the_stage_for_long(client: MlflowClient, state: Path) -> None:
    warnings: list[str] = []
    with pytest.raises(Interrupted), stage(state, "hangs", warnings) as run:
        record_epochs(run, 1, 2)
        wait_until(lambda: runs(client, "hangs"))
        (sender,) = senders()
        sender.suspend()
        record_epochs(run, 3, 4)
        ended = time.monotonic()
        raise Interrupted(130)
    assert time.monotonic() - ended < NOT_WAITED
    assert "there was no time left" in warnings[0]
    assert senders() == []
    assert replay(state) == []
    assert history(client, the_run(client, "hangs"), "loss") == losses(4)


@pytest.mark.usefixtures("warm")
def test_stop_signals_do_not_stop_the_sender(client: MlflowClient, state: Path) -> None:
    warnings: list[str] = []
    with stage(state, "signals", warnings) as run:
        record_epochs(run, 1, 1)
        wait_until(lambda: runs(client, "signals"))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            senders()[0].send_signal(number)
        record_epochs(run, 2, 2)
    assert warnings == []
    assert history(client, the_run(client, "signals"), "loss") == losses(2)


def started(folder: Path, model: str, last: int, seconds: float) -> subprocess.Popen[str]:
    own = (str(folder), model, str(last), str(seconds), sys.executable)
    command = [PYTHON, "-m", "tests.tracking.stage", *own]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def sender_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stage_that_waits_for_its_sender_can_be_stopped(state: Path, number: int) -> None:
    """The stage has ended and its outputs are complete, so it only stops waiting for its sender."""
    with started(state.parent, "waits", 3, 0.2) as process:
        assert process.stdout
        assert process.stdout.readline() == "epoch 1\n"
        (sender,) = sender_of(process)
        sender.suspend()
        wait_until(lambda: journals(state) and Delivery(state, journals(state)[0]).ended)
        asked = time.monotonic()
        while process.poll() is None and time.monotonic() < asked + NOT_WAITED:
            process.send_signal(number)  # the first signal may arrive just before the stage begins to wait
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                continue
        output = process.stdout.read()
    assert process.returncode == 0
    assert not sender.is_running()
    assert "not reached MLflow" in output
    assert json.loads((state.parent / "run.json").read_text())["journal"]


@pytest.mark.usefixtures("warm")
def test_the_sender_of_a_killed_stage_records_the_kill_and_ends(client: MlflowClient, tmp_path: Path) -> None:
    with started(tmp_path, "killed-process", 1000, 0.2) as process:
        wait_until(lambda: arrived(client, "killed-process") > 2)
        (sender,) = sender_of(process)
        process.kill()
        process.wait()
        sender.wait(NOT_WAITED)
    found, parent = the_run(client, "killed-process"), the_run(client, "killed-process", "pipeline")
    assert found.info.status == parent.info.status == "KILLED"
    steps = [step for step, _ in history(client, found, "loss")]
    assert steps == list(range(1, len(steps) + 1))


@pytest.mark.usefixtures("warm")
def test_a_stage_killed_at_random_moments_is_one_run_with_every_epoch_once(
    client: MlflowClient, tmp_path: Path
) -> None:
    """The stage is killed with or without its sender, and restarted immediately."""
    seed = int(os.environ.get("PSPNET_KILL_SEED", random.randrange(10_000)))
    rng = random.Random(seed)
    last = 40
    for _ in range(6):
        process = started(tmp_path, "kills", last, 0.05)
        time.sleep(rng.uniform(0.3, 2.5))
        victims = sender_of(process) if rng.random() < 0.5 and process.poll() is None else []
        for victim in [psutil.Process(process.pid), *victims] if process.poll() is None else []:
            victim.kill()
        process.communicate()
    with started(tmp_path, "kills", last, 0.05) as process:
        output, _ = process.communicate(timeout=200)
    assert process.returncode == 0
    assert output.splitlines() == [f"epoch {epoch}" for epoch in range(1, last + 1)], f"seed {seed}"
    found = the_run(client, "kills")
    assert history(client, found, "loss") == losses(last), f"seed {seed}"
    assert found.info.status == "FINISHED"
    assert the_run(client, "kills", "pipeline").info.status == "FINISHED"
    steps = [step for step, _ in history(client, found, "system/cpu_utilization_percentage")]
    assert steps == list(range(len(steps))), f"seed {seed}"
