"""PSPNET_DEVICES: one command, several processes, as a person and as the system see them."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import yaml

from pspnet.model.weights import digest
from pspnet.training.launch import SHUTDOWN_SECONDS, blame, exit_file
from tests.command import PSPNET, pspnet
from tests.kills import SEED, share_of
from tests.parameters import demo_params

COMMAND = (
    "finetune",
    "--prepared",
    "prepared",
    "--backbone",
    "backbone",
    "--out",
    "bundle",
    "--history",
    "history.csv",
)
ENVIRONMENT = {"PSPNET_DEVICES": "2", "PSPNET_DEVICE": "cpu", "PSPNET_LOADER_WORKERS": "1", "PSPNET_TRACKING": "off"}
PATIENCE = SHUTDOWN_SECONDS + 45  # seconds
pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def project(prepared: Path, backbone: Path, tmp_path: Path) -> Path:
    shutil.copytree(prepared, tmp_path / "prepared")
    write_params(tmp_path, epochs=2)
    return tmp_path


def write_params(project: Path, epochs: int) -> None:
    params = demo_params(
        backbone__width=0.125, finetune__epochs=epochs, finetune__batch_size=6, finetune__crop_height_px=48,
        finetune__crop_width_px=64, finetune__warmup_steps=2, finetune__ema_decay=0.9, runtime__threads=1,
    )  # fmt: skip
    (project / "params.yaml").write_text(yaml.safe_dump(params.model_dump()))


def exit_class(project: Path) -> str:
    return str(json.loads((project / ".pspnet/exit/finetune.json").read_text())["class"])


def processes(project: Path) -> list[psutil.Process]:
    """Whoever works there: the launcher, the processes of the devices, those of their loaders."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) == project:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def trainer(project: Path, rank: int) -> psutil.Process:
    (found,) = [
        process
        for process in processes(project)
        if (process.environ().get("RANK") == str(rank)) and process.parent().environ().get("RANK") is None  # type: ignore[union-attr]
    ]
    return found


def wait_until(what: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


@contextmanager
def training(project: Path, devices: str = "2") -> Iterator[subprocess.Popen[str]]:
    """The command, from its first checkpoint on."""
    environment = {**os.environ, **ENVIRONMENT, "PSPNET_DEVICES": devices, "PSPNET_CHECKPOINT_SECONDS": "0"}
    with subprocess.Popen(
        [PSPNET, *COMMAND], cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as launcher:
        try:
            wait_until(lambda: list(project.glob(".pspnet/checkpoints/finetune-*/state.safetensors")))
            yield launcher
        finally:
            for process in processes(project):
                process.kill()


@pytest.mark.parametrize(
    "devices",
    ["2", pytest.param("3", marks=pytest.mark.kills)],  # the order of a sum shows from three on: decision 0020
)
def test_a_stage_on_several_devices_goes_on_where_it_was_stopped(devices: str, project: Path) -> None:
    environment = {**ENVIRONMENT, "PSPNET_DEVICES": devices}
    alone = project / "alone"
    shutil.copytree(project, alone)
    done = pspnet(*COMMAND, cwd=alone, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("finetune: done in") == 1  # one process speaks
    assert "unused parameters" not in done.stderr
    assert exit_class(alone) == "done"

    with training(project, devices) as launcher:
        asked = time.monotonic()
        launcher.send_signal(signal.SIGTERM)
        said, _ = launcher.communicate(timeout=PATIENCE)
        assert time.monotonic() - asked < SHUTDOWN_SECONDS, "one had to be killed by torchrun"
        assert launcher.returncode == 75, said
        assert "which is saved: the same command goes on from there" in said
        assert "Traceback" not in said
        assert exit_class(project) == "interrupted"
        assert not processes(project)
    assert not (project / "bundle").exists()
    assert pspnet(*COMMAND, cwd=project, **environment).returncode == 0
    assert digest(project / "bundle") == digest(alone / "bundle")
    assert (project / "history.csv").read_text() == (alone / "history.csv").read_text()


def test_pretraining_too_is_shared_by_two_devices(project: Path) -> None:
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["pretrain"] |= {"method": "rotation", "epochs": 1, "batch_size": 8, "crop_px": 48, "accumulation_steps": 2}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    inputs, outputs = ("--prepared", "prepared", "--weights", "weights"), ("--out", "pretrained")
    done = pspnet("pretrain", *inputs, *outputs, "--history", "pretrain.csv", cwd=project, **ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert (project / "pretrained/backbone.safetensors").exists()
    assert "gradient_norm" in (project / "pretrain.csv").read_text()


def test_nobody_is_left_behind_by_a_launcher_that_is_killed(project: Path) -> None:
    write_params(project, epochs=1000)
    with training(project) as launcher:
        assert len(processes(project)) >= 3
        launcher.kill()
        wait_until(lambda: not processes(project))


def test_a_process_that_is_killed_ends_the_stage_as_killed(project: Path) -> None:
    """So that the flow tries it again."""
    write_params(project, epochs=1000)
    with training(project) as launcher:
        trainer(project, 1).kill()
        said, _ = launcher.communicate(timeout=PATIENCE)
        assert launcher.returncode == 128 + signal.SIGKILL, said
        assert not (project / ".pspnet/exit/finetune.json").exists()
        wait_until(lambda: not processes(project))


@pytest.mark.parametrize(("asked", "status"), [(True, 75), (False, 128 + signal.SIGKILL)])
def test_who_is_too_slow_to_stop_when_asked_is_not_the_cause(asked: bool, status: int, tmp_path: Path) -> None:
    """torchrun kills it in the end; the first process has long saved the checkpoint."""
    saved = {"class": "interrupted", "exit": 75, "message": "saved"}
    exit_file(tmp_path, "finetune", 0).write_text(json.dumps(saved))
    assert blame("finetune", 2, tmp_path, tmp_path, asked) == status
    assert exit_file(tmp_path, "finetune", 0).exists() is asked


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ("4", "finetune.batch_size: is 6, for 4 devices and finetune.accumulation_steps 1; expected a multiple of 4"),
        ("many", "PSPNET_DEVICES: is 'many'; expected a whole number, 1 or more"),
    ],
)
def test_devices_that_cannot_be_are_told_once(devices: str, message: str, project: Path) -> None:
    done = pspnet(*COMMAND, cwd=project, **{**ENVIRONMENT, "PSPNET_DEVICES": devices})
    assert done.returncode == 1
    assert done.stderr.count(message) == 1
    assert "Traceback" not in done.stderr


@pytest.mark.kills
@pytest.mark.timeout(900)
def test_two_devices_killed_ten_times_end_with_the_same_weights(project: Path) -> None:
    alone = project / "alone"
    write_params(project, epochs=6)
    shutil.copytree(project, alone)
    assert pspnet(*COMMAND, cwd=alone, **ENVIRONMENT).returncode == 0
    rng = random.Random(SEED)
    kills = 0
    while kills < share_of(10):
        with training(project) as launcher:
            time.sleep(rng.uniform(0, 2))
            victims = processes(project)
            if launcher.poll() is None and victims:
                rng.choice(victims).kill()
                kills += 1
            launcher.communicate(timeout=PATIENCE)
            wait_until(lambda: not processes(project))
        if (project / "bundle").exists():  # it was over before the kill came
            shutil.rmtree(project / "bundle")
            shutil.rmtree(project / ".pspnet")
    assert pspnet(*COMMAND, cwd=project, **ENVIRONMENT).returncode == 0
    assert digest(project / "bundle") == digest(alone / "bundle")
