"""`pspnet retrain` stopped and killed in the middle of a training: nothing is left, and the same comes out."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors import safe_open

from pspnet.config.reading import read_yaml
from tests.e2e.pipeline import TINY, checkout, clone, digests, environment, reproduce, run, write_params
from tests.flows.processes import cmdline, kill_all, left, left_of, of

pytestmark = pytest.mark.timeout(400)
LONGER: dict[str, Any] = {"finetune__epochs": 30, "promotion__min_mean_iou": 0.0}
SYNTHESIZE = ("pspnet", "synthesize", "data/raw", "--images", "40", "--labelled", "28")
# Ctrl-C lets it end well: DVC, Prefect and the training have things to write. What is killed has nothing to say.
STOPS_SECONDS = 30
GONE_SECONDS = 30


@dataclass(frozen=True)
class Retraining:
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def said(self) -> str:
        return (self.folder / ".pspnet/said.log").read_text()

    def until(self, met: Callable[[], Any], seconds: float = 120) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := met()):
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.05)
        return found

    def training(self, step: int = 1) -> psutil.Process:
        """Once it has come so far, and has saved that."""
        before = saved_step(self.folder)

        def found() -> psutil.Process | None:
            now = saved_step(self.folder)
            assert now >= before, f"it has gone back from step {before} to {now}"
            trainings = [one for one in of(self.folder) if {"finetune", "--history"} <= set(cmdline(one))]
            oldest = min(
                trainings, key=lambda one: one.create_time(), default=None
            )  # the others are its loader's workers
            return oldest if now >= step else None

        process: psutil.Process = self.until(found)
        return process


@contextmanager
def retraining(folder: Path) -> Iterator[Retraining]:
    env = environment(folder) | {"PSPNET_CHECKPOINT_SECONDS": "0.5"}
    with (folder / ".pspnet/said.log").open("wb") as log:
        process = subprocess.Popen(["pspnet", "retrain"], cwd=folder, env=env, stdout=log, stderr=log,
                                   start_new_session=True)  # fmt: skip
    try:
        yield Retraining(folder, process)
    finally:
        kill_all(folder)
        process.wait()


def in_prefect(folder: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(folder / ".pspnet/prefect/prefect.db")) as database:
        return database.execute(query).fetchall()


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


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As far as the training."""
    folder = checkout(tmp_path_factory.mktemp("place"), **LONGER)
    run(folder, *SYNTHESIZE)
    run(folder, "dvc", "add", "--quiet", "data/raw")
    run(folder, "dvc", "repro", "pretrain")
    shutil.copytree(folder / ".dvc/cache", folder / ".pspnet/early-cache")
    return folder


@pytest.fixture(scope="module")
def undisturbed(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By DVC alone, from there on."""
    folder = clone(place, tmp_path_factory.mktemp("undisturbed") / "clone")
    shutil.copytree(place / ".pspnet/early-cache", folder / ".dvc/cache")
    run(folder, *SYNTHESIZE)
    assert reproduce(folder) == ["finetune", "evaluate"]
    return folder


@contextmanager
def limited(place: Path, timeout: str) -> Iterator[None]:
    """The training, which would go on for long."""
    pipeline, params = place / "dvc.yaml", place / "params.yaml"
    texts = {path: path.read_text() for path in (pipeline, params)}
    content = read_yaml(pipeline)
    content["stages"]["finetune"]["meta"]["timeout"] = timeout
    pipeline.write_text(json.dumps(content))
    write_params(place, finetune__epochs=4000)
    try:
        yield
    finally:
        for path, text in texts.items():
            path.write_text(text)
        for checkpoint in place.glob(".pspnet/checkpoints/finetune-*"):
            shutil.rmtree(checkpoint)


def test_a_stage_that_takes_too_long_leaves_nothing_and_is_not_tried_again(place: Path) -> None:
    with limited(place, "30s"), retraining(place) as retrained:
        training = retrained.training()
        family = [training, *training.children(recursive=True)]
        commands = [cmdline(one) for one in family]
        assert commands.count(cmdline(training)) > 1  # with its loader's workers
        assert any("pspnet.tracking.sender" in command for command in commands)
        assert retrained.process.wait(90) == 1
        assert left(place) == []
        assert left_of(family) == []
    took = "finetune: It took longer than 30 s, and was ended with all its processes."
    assert retrained.said.splitlines()[-1] == f"{took} Its limit is meta.timeout in dvc.yaml."
    assert retrained.said.count("Running stage 'finetune'") == 1
    assert "Traceback" not in retrained.said
    assert last_task(place) == ("finetune", "TimedOut", 1)


def test_a_mistake_that_only_the_stage_can_find_is_not_tried_again(place: Path) -> None:
    write_params(place, finetune__batch_size=4000)
    with retraining(place) as retrained:
        assert retrained.process.wait(120) == 1
    write_params(place, **(TINY | LONGER))
    assert last_task(place) == ("finetune", "Failed", 1)
    assert "Traceback" not in retrained.said
    assert retrained.said.splitlines()[-1].startswith("finetune: ")


def test_ctrl_c_ends_it_within_seconds(place: Path) -> None:
    with retraining(place) as retrained:
        retrained.training(20)
        os.killpg(retrained.process.pid, signal.SIGINT)
        assert retrained.process.wait(STOPS_SECONDS) == 130
        assert left(place) == []
    assert retrained.said.splitlines()[-1] == "Stopped. Nothing is half-written; start it again as it was."
    assert "Traceback" not in retrained.said
    assert last_task(place) == ("finetune", "Crashed", 1)  # Prefect has been told


def test_nothing_is_left_when_it_is_killed(place: Path) -> None:
    """Not even Prefect's server, and it goes on from where it was stopped before."""
    with retraining(place) as retrained:
        retrained.training(45)
        assert any("uvicorn" in cmdline(one) for one in of(place))
        retrained.process.kill()
        assert left(place, GONE_SECONDS) == []


def test_a_stage_that_the_system_kills_is_tried_again_and_the_same_comes_out(place: Path, undisturbed: Path) -> None:
    with retraining(place) as retrained:
        retrained.training(70).kill()
        assert retrained.process.wait(200) == 0, retrained.said
        assert left(place) == []
    assert "finetune: It was killed, as the system does when memory runs out." in retrained.said
    assert retrained.said.count("Running stage 'finetune'") == 2
    tasks = in_prefect(place, "select name, state_name, run_count from task_run order by start_time")
    assert ("finetune", "Completed", 2) in tasks[-5:]
    assert digests(place) == digests(undisturbed)
    [(percent,)] = in_prefect(
        place, "select data from artifact where key = 'progress-finetune' order by created desc limit 1"
    )
    assert percent == 100
