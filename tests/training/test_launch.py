"""PSPNET_DEVICES: one command and several processes, from the view of a person and of the system."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import yaml
from safetensors import safe_open

from pspnet.machine.events import VARIABLE, append, event, read
from pspnet.model.backbone.digest import digest
from pspnet.training.launch import SHUTDOWN_SECONDS, blame
from tests.command import PSPNET, pspnet, pspnet_process
from tests.kills import kill_seed
from tests.parameters import demo_params
from tests.training.commands import command, started_together, statuses
from tests.waiting import wait_until

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
ENVIRONMENT = {"PSPNET_DEVICE": "cpu", "PSPNET_LOADER_WORKERS": "1", "PSPNET_TRACKING": "off"}
STEPS = 18  # number of steps in six epochs
PATIENCE = SHUTDOWN_SECONDS + 45  # in seconds
pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def project(prepared: Path, backbone: Path, tmp_path: Path) -> Path:
    (tmp_path / "prepared").symlink_to(prepared)
    (tmp_path / "backbone").symlink_to(backbone)
    write_params(tmp_path, epochs=2)
    return tmp_path


def write_params(project: Path, epochs: int, batch_size: int = 6) -> None:
    params = demo_params(
        backbone__width=0.125, finetune__epochs=epochs, finetune__batch_size=batch_size,
        finetune__crop_height_px=32, finetune__crop_width_px=40, finetune__optimizer__warmup_steps=2,
        finetune__ema_decay=0.9, runtime__threads=1,
    )  # fmt: skip
    (project / "params.yaml").write_text(yaml.safe_dump(params.model_dump()))


def trained_by(devices: int, project: Path, *words: str) -> None:
    """Train to the end with this many processes, without torchrun."""
    processes = started_together(devices, command, words or COMMAND, project, ENVIRONMENT)
    assert statuses(processes) == [0] * devices, (project / "log-0").read_text()


def end_of(log: Path) -> str | None:
    """Return the class in the stage's own exit event, not in the events of its processes. None means that the stage was
    killed.
    """
    ends = [event["class"] for event, _ in read(log) if event["kind"] == "exit" and "rank" not in event]
    return ends[-1] if ends else None


def processes(project: Path) -> list[psutil.Process]:
    """Return all processes in the project: the launcher, the devices' processes, and their loaders."""
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


def checkpoint(project: Path) -> Path | None:
    return next(project.glob(".pspnet/checkpoints/finetune-*/state.safetensors"), None)


@contextmanager
def training(project: Path, devices: str = "2") -> Iterator[subprocess.Popen[str]]:
    """Start training. Yields the running command after its first checkpoint."""
    environment = {**os.environ, **ENVIRONMENT, "PSPNET_DEVICES": devices, "PSPNET_CHECKPOINT_SECONDS": "0"}
    environment[VARIABLE] = str(project / "log.jsonl")
    with subprocess.Popen(
        [PSPNET, *COMMAND], cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as launcher:
        try:
            wait_until(lambda: checkpoint(project))
            yield launcher
        finally:
            for process in processes(project):
                process.kill()


@pytest.mark.kills
@pytest.mark.parametrize("devices", ["2", "3"])  # with three or more devices, the order of a sum matters: decision 0022
def test_a_stage_on_several_devices_resumes_where_it_was_stopped(devices: str, project: Path) -> None:
    alone = project / "alone"
    write_params(project, epochs=6)  # long enough that it can be stopped
    shutil.copytree(project, alone, symlinks=True)
    trained_by(int(devices), alone)
    with training(project, devices) as launcher:
        asked = time.monotonic()
        launcher.send_signal(signal.SIGTERM)
        output, _ = launcher.communicate(timeout=PATIENCE)
        assert time.monotonic() - asked < SHUTDOWN_SECONDS, "one had to be killed by torchrun"
        assert launcher.returncode == 75, output
        assert "which is saved. The same command continues from there" in output
        assert "Traceback" not in output
        assert end_of(project / "log.jsonl") == "interrupted"
        assert not processes(project)
    assert not (project / "bundle").exists()
    if devices == "2":
        log = str(project / "again.jsonl")
        done = pspnet_process(*COMMAND, cwd=project, **ENVIRONMENT, PSPNET_DEVICES=devices, PSPNET_EVENTS=log)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("finetune: done in") == 1  # only one process reports progress
        assert "unused parameters" not in done.stderr
        assert end_of(Path(log)) == "done"
    else:  # the same number of processes, forked, so that torch is not loaded again
        trained_by(int(devices), project)
    assert digest(project / "bundle") == digest(alone / "bundle")
    assert (project / "history.csv").read_text() == (alone / "history.csv").read_text()


@pytest.mark.e2e
def test_pretraining_runs_on_two_devices(project: Path) -> None:
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["pretrain"] |= {"method": {"kind": "rotation"}, "epochs": 1, "batch_size": 8, "crop_px": 48}
    params["pretrain"]["optimizer"]["accumulation_steps"] = 2
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    inputs, outputs = ("--prepared", "prepared", "--weights", "weights"), ("--out", "pretrained")
    trained_by(2, project, "pretrain", *inputs, *outputs, "--history", "pretrain.csv", "--page", "pretrain.html")
    assert (project / "pretrained/backbone.safetensors").exists()
    assert "gradient_norm" in (project / "pretrain.csv").read_text()


@pytest.mark.e2e
def test_a_killed_launcher_leaves_no_process_behind(project: Path) -> None:
    write_params(project, epochs=1000)
    with training(project) as launcher:
        assert len(processes(project)) >= 3
        launcher.kill()
        wait_until(lambda: not processes(project))


@pytest.mark.e2e
def test_a_process_that_is_killed_ends_the_stage_as_killed(project: Path) -> None:
    """The flow then retries the stage."""
    write_params(project, epochs=1000)
    with training(project) as launcher:
        trainer(project, 1).kill()
        output, _ = launcher.communicate(timeout=PATIENCE)
        assert launcher.returncode == 128 + signal.SIGKILL, output
        assert end_of(project / "log.jsonl") is None
        wait_until(lambda: not processes(project))


@pytest.mark.parametrize(("asked", "status"), [(True, 75), (False, 128 + signal.SIGKILL)])
def test_a_process_too_slow_to_stop_when_asked_is_not_the_cause(asked: bool, status: int, tmp_path: Path) -> None:
    """torchrun eventually kills it, once the first process has saved the checkpoint."""
    log = tmp_path / "log.jsonl"
    append(log, event("exit", rank=0, **{"class": "interrupted", "status": 75, "message": "saved"}))
    assert blame("finetune", 2, log, tmp_path, asked) == status
    assert end_of(log) == ("interrupted" if asked else None)


def test_the_likeliest_cause_is_reported_for_the_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.jsonl"
    for rank, kind in enumerate(("bug", "user", "interrupted")):
        append(log, event("exit", rank=rank, **{"class": kind, "status": 1, "message": f"of device {rank}"}))
    assert blame("finetune", 3, log, tmp_path, asked=False) == 1
    assert read(log)[-1][0]["message"] == "of device 1"
    assert capsys.readouterr().err == "finetune, device 1: user\n"


@pytest.mark.e2e
def test_a_batch_that_does_not_split_over_the_devices_is_reported_once(project: Path) -> None:
    write_params(project, epochs=2, batch_size=5)
    done = pspnet_process(*COMMAND, cwd=project, **ENVIRONMENT, PSPNET_DEVICES="2")
    assert done.returncode == 1
    message = "finetune.batch_size: is 5, for 2 devices and optimizer.accumulation_steps 1; expected a multiple of 2"
    assert done.stderr.count(message) == 1
    assert "Traceback" not in done.stderr


def test_a_number_of_devices_that_is_not_a_number_is_reported(project: Path) -> None:
    done = pspnet(*COMMAND, cwd=project, **ENVIRONMENT, PSPNET_DEVICES="many")
    assert done.returncode == 1
    assert done.stderr.count("PSPNET_DEVICES: is 'many'; expected a whole number, 1 or more") == 1
    assert "Traceback" not in done.stderr


def saved_step(project: Path) -> int:
    path = checkpoint(project)
    if path is None:
        return 0
    with safe_open(path, "pt") as file:
        return int(json.loads(file.metadata()["state"])["step"])


@pytest.mark.kills
def test_two_devices_killed_ten_times_end_with_the_same_weights(project: Path) -> None:
    """Three of the kills hit runs under torchrun, or torchrun itself. The other runs are forked to
    save loading torch.
    """
    alone = project / "alone"
    write_params(project, epochs=6)
    shutil.copytree(project, alone, symlinks=True)
    trained_by(2, alone)
    rng = random.Random(kill_seed())
    for kill, step in enumerate(sorted(rng.choices(range(STEPS), k=10))):
        hit = hit_below_torchrun if kill % 4 == 1 else hit_forked
        while not hit(project, step, rng):  # the run finished before the kill
            shutil.rmtree(project / "bundle")
            shutil.rmtree(project / ".pspnet")
    trained_by(2, project)
    assert digest(project / "bundle") == digest(alone / "bundle")


def hit_forked(project: Path, step: int, rng: random.Random) -> bool:
    """Kill a device's process or a loader's process soon after the step. Returns whether the run
    was still unfinished.
    """
    environment = {**ENVIRONMENT, "PSPNET_CHECKPOINT_SECONDS": "0"}
    pair = started_together(2, command, COMMAND, project, environment)
    wait_until(lambda: saved_step(project) >= step or not all(process.is_alive() for process in pair))
    hit = kill_one(project, rng)
    wait_until(lambda: not all(process.is_alive() for process in pair))
    ends = statuses(pair, 0 if hit else 60)  # as torchrun does, end the processes that wait for a killed process
    wait_until(lambda: not processes(project))
    assert hit or ends == [0, 0], ends
    return not (project / "bundle").exists()


def hit_below_torchrun(project: Path, step: int, rng: random.Random) -> bool:
    with training(project) as launcher:
        wait_until(lambda: saved_step(project) >= step or launcher.poll() is not None)
        hit = kill_one(project, rng)
        launcher.communicate(timeout=PATIENCE)
        wait_until(lambda: not processes(project))
        return hit and not (project / "bundle").exists()


def kill_one(project: Path, rng: random.Random) -> bool:
    time.sleep(rng.uniform(0, 0.5))
    victims = processes(project)
    if victims and not (project / "bundle").exists():
        rng.choice(victims).kill()
        return True
    return False
