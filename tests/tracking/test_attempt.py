"""Stages beside a real sender and a real server, with what may happen to any of the three."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from mlflow.tracking import MlflowClient

from pspnet.errors import Interrupted, Problem, UserError
from pspnet.tracking.attempt import stage_run
from pspnet.tracking.delivery import Delivery, journals, replay
from pspnet.tracking.run import StageRun
from tests.dataset.rawdata import write
from tests.parameters import ROOT, demo_params
from tests.tracking.server import Server
from tests.tracking.told import artifacts, history, inputs, runs, the_run


@contextmanager
def stage(state: Path, model: str, told: list[str], out: Path | None = None) -> Iterator[StageRun]:
    """A stage that has said which work it does."""
    params = demo_params(registry__model=model)
    with stage_run(state, "finetune", params, ("finetune", "runtime"), out, told.append) as run:
        run.identify(training="digest")
        yield run


def epochs(run: StageRun, first: int, last: int) -> None:
    for epoch in range(first, last + 1):
        run.epoch({"epoch": epoch, "loss": 1 / epoch})


def losses(last: int) -> list[tuple[int, float]]:
    return [(epoch, 1 / epoch) for epoch in range(1, last + 1)]


def eventually(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)


def arrived(client: MlflowClient, model: str) -> int:
    return sum(len(history(client, run, "loss")) for run in runs(client, model))


def senders() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if child.is_running() and "pspnet.tracking.sender" in child.cmdline()]


def test_a_stage_is_a_run_that_holds_everything(client: MlflowClient, state: Path, tmp_path: Path) -> None:
    told: list[str] = []
    with stage(state, "whole", told, tmp_path / "runs/finetune.json") as run:
        epochs(run, 1, 3)
        run.dataset("train", "f" * 64, tmp_path / "prepared", 7)
        run.figures({"seconds": 1.5})
        run.headline({"val_mean_iou": 0.25})
        run.artifacts(write(tmp_path / "history.csv", "epoch,loss\n"))
    assert told == []
    found, parent = the_run(client, "whole"), the_run(client, "whole", "pipeline")
    assert found.info.status == parent.info.status == "FINISHED"
    assert history(client, found, "loss") == losses(3)
    assert found.data.metrics["seconds"] == 1.5
    assert found.data.params["finetune.learning_rate"] == "0.002"
    assert artifacts(client, found) == {"history.csv"}
    assert [item.dataset.digest for item in inputs(found)] == ["f" * 36]
    assert found.data.metrics["system/cpu_utilization_percentage"] >= 0
    assert parent.data.metrics == {"val_mean_iou": 0.25}
    record = json.loads((tmp_path / "runs/finetune.json").read_text())
    assert (record["run_id"], record["pipeline"]) == (found.info.run_id, parent.data.tags["pspnet.pipeline"])
    assert record["machine"]["host"] == os.uname().nodename
    assert senders() == []


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError(Problem("here", "is wrong")), "FAILED", "here: is wrong"),
        (ZeroDivisionError(), "FAILED", "ZeroDivisionError"),
        (Interrupted(130, "Stopped after step 7."), "KILLED", "Stopped after step 7."),
    ],
)
def test_how_a_stage_ended_is_told(
    client: MlflowClient, state: Path, tmp_path: Path, error: Exception, status: str, message: str
) -> None:
    model, told = f"error-{type(error).__name__}", list[str]()
    with pytest.raises(type(error)), stage(state, model, told, tmp_path / "record.json") as run:
        epochs(run, 1, 2)
        eventually(lambda: bool(runs(client, model)))  # within the time that is left after an error
        raise error
    assert told == []
    run_found, parent = the_run(client, model), the_run(client, model, "pipeline")
    assert run_found.info.status == parent.info.status == status
    assert run_found.data.tags["pspnet.message"] == message
    assert not (tmp_path / "record.json").exists()

    with stage(state, model, told) as run:
        epochs(run, 1, 3)
    again = the_run(client, model)
    assert (again.info.run_id, again.info.status) == (run_found.info.run_id, "FINISHED")
    assert (again.data.tags["pspnet.message"], again.data.tags["pspnet.attempts"]) == ("", "2")
    assert history(client, again, "loss") == losses(3)
    steps = [step for step, _ in history(client, again, "system/cpu_utilization_percentage")]
    assert steps == list(range(len(steps)))
    assert len(steps) >= 2


def test_a_stage_that_fails_before_it_knows_its_work_is_no_run(client: MlflowClient, state: Path) -> None:
    told: list[str] = []
    started = time.monotonic()
    params = demo_params(registry__model="early")
    with pytest.raises(UserError), stage_run(state, "prepare", params, ("prepare",), None, told.append):
        raise UserError(Problem("data/raw", "is missing"))
    assert time.monotonic() - started < 3
    assert (told, runs(client, "early"), journals(state), senders()) == ([], [], [], [])


def test_a_server_that_is_away_for_a_while_misses_nothing(client: MlflowClient, server: Server, state: Path) -> None:
    told: list[str] = []
    with stage(state, "away", told) as run:
        epochs(run, 1, 2)
        eventually(
            lambda: len(history(client, the_run(client, "away"), "loss")) == 2 if runs(client, "away") else False
        )
        server.stop()
        epochs(run, 3, 4)
        time.sleep(2)
        server.start()
        eventually(lambda: arrived(client, "away") == 4)
        epochs(run, 5, 5)
    assert told == []
    found = the_run(client, "away")
    assert (history(client, found, "loss"), found.info.status) == (losses(5), "FINISHED")


def test_a_server_that_is_away_at_the_end_gets_the_rest_later(
    client: MlflowClient, server: Server, state: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    with stage(state, "later", told, tmp_path / "record.json") as run:
        epochs(run, 1, 2)
        eventually(lambda: bool(runs(client, "later")))
        server.stop()
        epochs(run, 3, 4)
        run.artifacts(write(tmp_path / "history.csv", "epoch,loss\n"))
        (tmp_path / "history.csv").unlink()
        ended = time.monotonic()
    assert time.monotonic() - ended < 10
    (line,) = told
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


def test_a_later_stage_brings_what_an_earlier_one_could_not(
    client: MlflowClient, server: Server, state: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    server.stop()
    with stage(state, "brings", told, tmp_path / "record.json") as run:
        epochs(run, 1, 2)
    assert len(told) == 1
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["run_id"] is None
    server.start()
    params = demo_params(registry__model="brings")
    with stage_run(state, "evaluate", params, ("evaluate",), None, told.append) as run:
        run.identify(bundle="digest")
        eventually(lambda: not any(Delivery(state, folder).pending for folder in journals(state)))
    assert len(told) == 1
    found = {run.info.run_name: run for run in runs(client, "brings")}
    assert {name: run.info.status for name, run in found.items()} == {"finetune": "FINISHED", "evaluate": "FINISHED"}
    assert found["finetune"].data.tags["pspnet.journal"] == record["journal"]


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("http://127.0.0.1:9", "Connection refused"),
        ("http://no-such-host.invalid", "Name or service not known|Temporary failure|No address"),
        ("rubbish://me:secret@nowhere", "unsupported URI"),
        ("http://[rubbish", "URL|Invalid"),
        ("sqlite:////proc/no/such/folder/mlflow.db", "unable to open|No such file"),
    ],
)
def test_a_server_that_cannot_be_reached_costs_some_seconds_and_a_line(
    uri: str, why: str, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    told: list[str] = []
    with stage(state, "unreachable", told) as run:
        epochs(run, 1, 2)
        ended = time.monotonic()
    assert time.monotonic() - ended < 25
    (line,) = told
    assert re.search(why, line), line
    assert "secret" not in line
    assert [len(Delivery(state, folder).pending) for folder in journals(state)] == [5]
    assert senders() == []


def test_a_server_that_never_answers_costs_some_seconds_and_a_line(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with stage(state, "silent", told) as run:
            epochs(run, 1, 2)
            ended = time.monotonic()
        assert time.monotonic() - ended < 25
    (line,) = told
    assert "timed out" in line


def test_a_folder_that_cannot_be_written_is_told_in_a_line(state: Path) -> None:
    told: list[str] = []
    write(state / "tracking", "no folder")
    with stage(state, "unwritable", told) as run:
        epochs(run, 1, 2)
    (line,) = told
    assert line.startswith("finetune: this run is not tracked (")


def test_a_disk_that_fails_in_the_middle_is_told_in_a_line(client: MlflowClient, state: Path, tmp_path: Path) -> None:
    told: list[str] = []
    with stage(state, "disk", told, tmp_path / "record.json") as run:
        epochs(run, 1, 1)
        eventually(lambda: bool(runs(client, "disk")))  # nobody waits long for a sender once this has failed
        run.artifacts(tmp_path / "missing.html")
        epochs(run, 2, 2)
    (line,) = told
    assert line == "finetune: not all of this run is tracked (No such file or directory)."
    assert history(client, the_run(client, "disk"), "loss") == losses(2)
    assert (tmp_path / "record.json").exists()


def test_tracking_can_be_switched_off(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSPNET_TRACKING", "off")
    told: list[str] = []
    with stage(state, "off", told, tmp_path / "record.json") as run:
        epochs(run, 1, 2)
    assert (told, state.exists()) == ([], False)
    assert json.loads((tmp_path / "record.json").read_text())["run_id"] is None
    monkeypatch.setenv("PSPNET_TRACKING", "no")
    with pytest.raises(UserError, match="PSPNET_TRACKING: is 'no'; expected on or off"), stage(state, "off", told):
        pass


def test_a_sender_that_dies_does_not_disturb_the_stage(client: MlflowClient, state: Path) -> None:
    told: list[str] = []
    with stage(state, "dies", told) as run:
        epochs(run, 1, 2)
        eventually(lambda: bool(runs(client, "dies")))
        (sender,) = senders()
        sender.kill()
        epochs(run, 3, 4)
    (line,) = told
    assert "the process that sends ended with -9" in line
    with stage(state, "dies", told) as run:
        epochs(run, 1, 5)
    assert len(told) == 1
    assert history(client, the_run(client, "dies"), "loss") == losses(5)


def test_a_sender_that_hangs_does_not_hold_up_the_stage_for_long(client: MlflowClient, state: Path) -> None:
    told: list[str] = []
    with pytest.raises(Interrupted), stage(state, "hangs", told) as run:
        epochs(run, 1, 2)
        eventually(lambda: bool(runs(client, "hangs")))
        (sender,) = senders()
        sender.suspend()
        epochs(run, 3, 4)
        ended = time.monotonic()
        raise Interrupted(130)
    assert time.monotonic() - ended < 8
    assert "there was no time left" in told[0]
    assert senders() == []
    assert replay(state) == []
    assert history(client, the_run(client, "hangs"), "loss") == losses(4)


def test_ctrl_c_and_the_end_of_the_terminal_do_not_stop_the_sender(client: MlflowClient, state: Path) -> None:
    told: list[str] = []
    with stage(state, "signals", told) as run:
        epochs(run, 1, 1)
        eventually(lambda: bool(runs(client, "signals")))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            senders()[0].send_signal(number)
        epochs(run, 2, 2)
    assert told == []
    assert history(client, the_run(client, "signals"), "loss") == losses(2)


def started(folder: Path, model: str, last: int, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.tracking.stage", str(folder), model, str(last), str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def sender_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children()


def test_a_stage_that_is_killed_is_said_to_be_and_its_sender_goes(client: MlflowClient, tmp_path: Path) -> None:
    with started(tmp_path, "killed", 1000, 0.2) as process:
        eventually(
            lambda: len(history(client, the_run(client, "killed"), "loss")) > 2 if runs(client, "killed") else False
        )
        (sender,) = sender_of(process)
        process.kill()
        process.wait()
        gone = time.monotonic()
        sender.wait(15)
    assert time.monotonic() - gone < 10
    found, parent = the_run(client, "killed"), the_run(client, "killed", "pipeline")
    assert found.info.status == parent.info.status == "KILLED"
    steps = [step for step, _ in history(client, found, "loss")]
    assert steps == list(range(1, len(steps) + 1))


def test_a_stage_killed_at_random_moments_is_one_run_with_every_epoch_once(
    client: MlflowClient, tmp_path: Path
) -> None:
    """Sometimes with its sender, sometimes alone, and started again at once."""
    seed = int(os.environ.get("PSPNET_KILL_SEED", random.randrange(10_000)))
    rng = random.Random(seed)
    last = 40
    for _ in range(6):
        process = started(tmp_path, "kills", last, 0.05)
        time.sleep(rng.uniform(1, 6))
        victims = sender_of(process) if rng.random() < 0.5 and process.poll() is None else []
        for victim in [psutil.Process(process.pid), *victims] if process.poll() is None else []:
            victim.kill()
        process.communicate()
    with started(tmp_path, "kills", last, 0.05) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert output.splitlines() == [f"epoch {epoch}" for epoch in range(1, last + 1)], f"seed {seed}"
    found = the_run(client, "kills")
    assert history(client, found, "loss") == losses(last), f"seed {seed}"
    assert found.info.status == "FINISHED"
    assert the_run(client, "kills", "pipeline").info.status == "FINISHED"
    steps = [step for step, _ in history(client, found, "system/cpu_utilization_percentage")]
    assert steps == list(range(len(steps))), f"seed {seed}"
