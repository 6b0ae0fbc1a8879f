"""`pspnet retrain`, stopped and killed in the middle of training, leaves no process and gives the same results."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow.tracking import MlflowClient
from safetensors import safe_open

from pspnet.config.reading import read_yaml
from tests.e2e.pipeline import copied, digests, environment, in_prefect, reproduce, warmed, write_params
from tests.files import made_once
from tests.flows.processes import cmdline, kill_all, left, left_of, processes_of
from tests.kills import kill_seed
from tests.tracking.server import Server
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(900)
EPOCHS = 24
MODEL = "pspnet-demo"
ENDS_SECONDS = 600
# After Ctrl-C, DVC, Prefect and the training process still save files; after a kill, no process does.
STOPS_SECONDS = 60
GONE_SECONDS = 30
LIMIT_SECONDS = 3600  # only the clock in OVERDUE reaches this limit
# Runs `pspnet retrain` with a clock that speeds up once a file exists, so that its stages exceed LIMIT_SECONDS and any
# retry is due soon after.
OVERDUE = """
import time
from pathlib import Path
from types import SimpleNamespace
from flows import command
from pspnet.cli import main
clock = time.monotonic
command.time = SimpleNamespace(monotonic=lambda: clock() * (1000 if Path(".pspnet/overdue").exists() else 1))
main()
"""


@dataclass(frozen=True)
class Retraining:
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def said(self) -> str:
        return (self.folder / ".pspnet/said.log").read_text()

    def until(self, met: Callable[[], Any]) -> Any:
        def found() -> Any:
            assert self.process.poll() is None, self.said
            return met()

        return wait_until(found, otherwise=lambda: self.said)

    def training(self, step: int = 1) -> psutil.Process:
        """Return the training process, once it has saved a checkpoint at this step."""
        before = saved_step(self.folder)

        def found() -> psutil.Process | None:
            now = saved_step(self.folder)
            assert now >= before, f"it has gone back from step {before} to {now}"
            if now < step:
                return None
            trainings = [one for one in processes_of(self.folder) if {"finetune", "--history"} <= set(cmdline(one))]
            # The youngest processes are the workers of the training process's loader.
            return min(trainings, key=lambda one: one.create_time(), default=None)

        process: psutil.Process = self.until(found)
        return process


@contextmanager
def retraining(
    folder: Path, *, program: Sequence[str] = ("pspnet",), tracking: str = "on", **more: str
) -> Iterator[Retraining]:
    env = environment(folder, PSPNET_CHECKPOINT_SECONDS="0.1", PSPNET_TRACKING=tracking, **more)
    with (folder / ".pspnet/said.log").open("wb") as log:
        process = subprocess.Popen([*program, "retrain"], cwd=folder, env=env, stdout=log, stderr=log,
                                   start_new_session=True)  # fmt: skip
    try:
        yield Retraining(folder, process)
    finally:
        kill_all(folder)
        process.wait()


def last_task(folder: Path) -> tuple[str, str, int]:
    [task] = in_prefect(folder, "select name, state_name, run_count from task_run order by start_time desc limit 1")
    return tuple(task)


def saved_step(folder: Path) -> int:
    paths = sorted(
        folder.glob(".pspnet/checkpoints/finetune-*/state.safetensors"), key=lambda path: path.stat().st_mtime
    )
    if not paths:
        return 0
    with safe_open(paths[-1], "np") as file:
        return int(json.loads(file.metadata()["state"])["step"])


@pytest.fixture
def place(retrained: Path) -> Path:
    """A checkout that has been retrained and now has to train longer."""
    write_params(retrained, finetune__epochs=EPOCHS)
    shutil.rmtree(retrained / ".pspnet/checkpoints")
    return retrained


@pytest.fixture(scope="session")
def undisturbed(shared: Path, stand_ins: Path, finished_once: Path) -> Path:
    """The same pipeline, run by DVC alone and without disturbance."""

    def make(folder: Path) -> None:
        folder.rmdir()
        write_params(copied(finished_once, folder), finetune__epochs=EPOCHS)
        assert reproduce(folder, **warmed(stand_ins)) == ["finetune", "evaluate"]

    return made_once(shared / "e2e/undisturbed", make)


@pytest.mark.e2e
def test_a_timed_out_stage_leaves_no_process_and_is_not_retried(place: Path) -> None:
    content = read_yaml(place / "dvc.yaml")
    content["stages"]["finetune"]["meta"]["timeout"] = f"{LIMIT_SECONDS}s"
    (place / "dvc.yaml").write_text(json.dumps(content))
    write_params(place, finetune__epochs=100_000)
    with retraining(place, program=(sys.executable, "-P", "-c", OVERDUE)) as retrained:
        training = retrained.training()
        family = [training, *training.children(recursive=True)]
        commands = [cmdline(one) for one in family]
        assert commands.count(cmdline(training)) > 1  # at least one of its loader's workers is running
        assert any("pspnet.tracking.sender" in command for command in commands)
        (place / ".pspnet/overdue").touch()
        assert retrained.process.wait(ENDS_SECONDS) == 1
        assert left(place) == []
        assert left_of(family) == []
    took = f"finetune: It ran longer than {LIMIT_SECONDS:,} s and was stopped with all its processes."
    assert retrained.said.splitlines()[-1] == f"{took} The limit is meta.timeout in dvc.yaml."
    assert retrained.said.count("Running stage 'finetune'") == 1
    assert "Traceback" not in retrained.said
    assert last_task(place) == ("finetune", "TimedOut", 1)


@pytest.mark.e2e
@pytest.mark.usefixtures("warm")
def test_a_mistake_found_by_a_stage_is_not_retried(place: Path) -> None:
    write_params(place, finetune__batch_size=4000)
    with retraining(place, tracking="off") as retrained:
        assert retrained.process.wait(ENDS_SECONDS) == 1
    assert last_task(place) == ("finetune", "Failed", 1)
    assert "Traceback" not in retrained.said
    assert retrained.said.splitlines()[-1].startswith("finetune: ")


@pytest.mark.kills
def test_a_killed_stage_is_retried_with_the_same_result(place: Path, undisturbed: Path) -> None:
    """The command is first stopped with Ctrl-C, then killed with all its processes. Each time it resumes when started
    again.
    """
    ctrl_c_ends_it_within_seconds(place)
    nothing_is_left_when_it_is_killed(place)
    with retraining(place) as retrained:
        retrained.training(48).kill()
        assert retrained.process.wait(600) == 0, retrained.said
        assert left(place) == []
    assert "finetune: It was killed. The system does this when memory runs out." in retrained.said
    assert retrained.said.count("Running stage 'finetune'") == 2
    tasks = in_prefect(place, "select name, state_name, run_count from task_run order by start_time")
    assert ("finetune", "Completed", 2) in tasks[-5:]
    assert digests(place) == digests(undisturbed)
    [(percent,)] = in_prefect(
        place, "select data from artifact where key = 'progress-finetune' order by created desc limit 1"
    )
    assert percent == 100


@pytest.mark.kills
def test_killing_single_processes_does_not_change_the_result(place: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Kill the command, each server and any working process. If the command fails, it is repeated."""
    rng = random.Random(kill_seed())
    mlflow = Server(tmp_path / "mlflow")
    mlflow.start()
    try:
        with retraining(place, MLFLOW_TRACKING_URI=mlflow.uri) as retrained:
            retrained.training(6)
            retrained.process.kill()
            assert left(place, GONE_SECONDS) == []
        with retraining(place, MLFLOW_TRACKING_URI=mlflow.uri) as retrained:
            retrained.training(20)
            (prefect,) = [one for one in processes_of(place) if "uvicorn" in cmdline(one)]
            prefect.kill()
            mlflow.stop()
            retrained.training(40)
            tree = psutil.Process(retrained.process.pid).children(recursive=True)
            chosen = rng.choice(sorted(tree, key=lambda one: one.pid))
            print(f"seed {kill_seed()}: {' '.join(cmdline(chosen))}")
            chosen.kill()
            mlflow.start()
            status = retrained.process.wait(ENDS_SECONDS)
            assert left(place, GONE_SECONDS) == []
        if status:
            with retraining(place, MLFLOW_TRACKING_URI=mlflow.uri) as retrained:
                assert retrained.process.wait(ENDS_SECONDS) == 0, retrained.said
                assert left(place, GONE_SECONDS) == []
        assert digests(place) == digests(undisturbed)
        client = MlflowClient(mlflow.uri)
        (version,) = client.search_model_versions(f"name = '{MODEL}'")
        assert client.get_registered_model(MODEL).aliases == {"champion": version.version}
        audit = client.get_experiment_by_name(f"{MODEL}.promotions")
        assert audit
        (move,) = client.search_runs([audit.experiment_id])
        assert (move.data.tags["number"], move.data.tags["state"]) == ("1", "done")
    finally:
        mlflow.stop()


def ctrl_c_ends_it_within_seconds(place: Path) -> None:
    with retraining(place) as retrained:
        retrained.training(12)
        os.killpg(retrained.process.pid, signal.SIGINT)
        assert retrained.process.wait(STOPS_SECONDS) == 130
        assert left(place) == []
    assert retrained.said.splitlines()[-1] == "Stopped. Nothing is half-written; run the same command to continue."
    assert "Traceback" not in retrained.said
    assert last_task(place) == ("finetune", "Crashed", 1)  # by then, Prefect has noticed the crash


def nothing_is_left_when_it_is_killed(place: Path) -> None:
    """Not even Prefect's server is left running. The run resumes where it was stopped."""
    with retraining(place) as retrained:
        retrained.training(30)
        assert any("uvicorn" in cmdline(one) for one in processes_of(place))
        retrained.process.kill()
        assert left(place, GONE_SECONDS) == []
