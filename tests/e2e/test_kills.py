"""SIGKILL at random moments of every step, then the same command again: the results are those of an undisturbed run."""

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from mlflow.tracking import MlflowClient

from pspnet.config.reading import read_yaml
from tests.e2e.pipeline import checkout, clone, digests, environment
from tests.kills import SEED, share_of
from tests.tracking.told import history, runs, the_run

pytestmark = [pytest.mark.kills, pytest.mark.timeout(1500)]

PIPELINE = """
echo "Running stage 'synthesize':" && pspnet synthesize data/raw --images 400 --labelled 40 &&
pspnet doctor --quick && dvc add --quiet data/raw && dvc repro &&
echo "Running stage 'register':" && pspnet register models/segmenter --promote && echo complete
"""
# step -> how often it is killed, and within how many seconds of its start: 20 times, with the one of DVC alone
PLAN = {
    "synthesize": (1, 2.0),
    "prepare": (2, 1.5),
    "pretrain": (4, 12.0),
    "finetune": (5, 14.0),
    "evaluate": (2, 5.0),
    "register": (5, 8.0),
}
OUTPUTS = {
    "synthesize": ["data/raw"],
    "prepare": ["data/prepared", "reports/runs/prepare.json"],
    "pretrain": ["models/backbone", "reports/pretrain.csv", "reports/runs/pretrain.json"],
    "finetune": ["models/segmenter", "reports/finetune.csv", "reports/runs/finetune.json"],
    "evaluate": ["reports/evaluation", "reports/metrics.json", "reports/runs/evaluate.json"],
    "register": [],
}
LAST_FILE = {  # written last into a folder that appears whole
    "data/raw": "synthetic.json",
    "data/prepared": "dataset.json",
    "models/backbone": "backbone.json",
    "models/segmenter": "model.json",
    "reports/evaluation": "report.html",
}
SLOWER: dict[str, Any] = {"pretrain__epochs": 6, "finetune__epochs": 40, "promotion__min_mean_iou": 0.0}


@contextmanager
def started(folder: Path) -> Iterator[subprocess.Popen[str]]:
    log = folder / ".pspnet.log"
    env = environment(folder) | {"PSPNET_CHECKPOINT_SECONDS": "0.5"}
    with (
        log.open("w") as output,
        subprocess.Popen(
            ["bash", "-c", PIPELINE],
            cwd=folder,
            env=env,
            stdout=output,
            stderr=output,
            text=True,
            start_new_session=True,
        ) as shell,
    ):
        try:
            yield shell
        finally:
            kill_all(folder)


def output(folder: Path) -> str:
    return (folder / ".pspnet.log").read_text()


def processes(folder: Path) -> list[psutil.Process]:
    """Every process that works in the checkout, whoever is its parent by now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(folder):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def kill_all(folder: Path) -> None:
    for process in processes(folder):
        process.kill()


def kill_dvc(folder: Path) -> None:
    (dvc,) = [process for process in processes(folder) if "repro" in process.cmdline()]
    dvc.kill()


def wait_until_gone(folder: Path) -> None:
    """On a disk that is busy, a process that is being killed may still wait for it."""
    deadline = time.monotonic() + 60
    while (left := processes(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left, f"still alive: {[process.cmdline() for process in left]}"


def wait_for(folder: Path, shell: subprocess.Popen[str], text: str) -> bool:
    """Whether `text` was printed before the pipeline ended."""
    while text not in output(folder):
        if shell.poll() is not None:
            return text in output(folder)
        time.sleep(0.02)
    return True


def forget(folder: Path, step: str) -> None:
    """Have the next run do this step again, from its beginning."""
    for path in OUTPUTS[step]:
        target = folder / path
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
    shutil.rmtree(folder / ".dvc/cache/runs", ignore_errors=True)
    for checkpoint in (folder / ".pspnet/checkpoints").glob(f"{step}-*"):
        shutil.rmtree(checkpoint)
    lock = folder / "dvc.lock"
    if lock.exists():
        content = read_yaml(lock)
        content["stages"].pop(step, None)
        lock.write_text(yaml.safe_dump(content))


def kill_in(folder: Path, step: str, seconds: float, only_dvc: bool, rng: random.Random) -> float:
    """Start the pipeline and kill it within `seconds` of the start of `step`; returns when that was."""
    for _ in range(10):
        delay = rng.uniform(0, seconds)
        with started(folder) as shell:
            if wait_for(folder, shell, f"Running stage '{step}'"):
                time.sleep(delay)
                running = output(folder).rpartition("Running stage '")[2].partition("'")[0]
                if shell.poll() is None and running == step:
                    kill_dvc(folder) if only_dvc else kill_all(folder)
                    wait_until_gone(folder)
                    return delay
        forget(folder, step)  # it was over before the kill came
    pytest.fail(f"{step} could not be hit")


def assert_outputs_are_whole(folder: Path) -> None:
    for path, last in LAST_FILE.items():
        assert not (folder / path).exists() or (folder / path / last).exists(), f"{path} is half-written"


def assert_each_stage_is_one_run_with_every_epoch_once(folder: Path) -> None:
    client = MlflowClient(f"sqlite:///{folder}/.pspnet/mlflow.db")
    found = {run.info.run_name: run for run in runs(client, "pspnet-demo")}
    assert len(runs(client, "pspnet-demo")) == len(found) == 4
    parent = the_run(client, "pspnet-demo", "pipeline")
    assert {run.info.status for run in (parent, *found.values())} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in found.values()} == {parent.info.run_id}
    for name in ("pretrain", "finetune"):
        epochs = range(1, SLOWER[f"{name}__epochs"] + 1)
        assert [step for step, _ in history(client, found[name], "loss")] == list(epochs)
        steps = [step for step, _ in history(client, found[name], "system/cpu_utilization_percentage")]
        assert steps == list(range(len(steps)))


def assert_one_version_and_one_decision(folder: Path) -> None:
    client = MlflowClient(f"sqlite:///{folder}/.pspnet/mlflow.db")
    (version,) = client.search_model_versions("name = 'pspnet-demo'")
    assert client.get_registered_model("pspnet-demo").aliases == {"champion": version.version}
    (decision,) = runs(client, "pspnet-demo", "decision")
    assert (decision.info.status, decision.data.tags["outcome"]) == ("FINISHED", "passed")
    assert {item.path for item in client.list_artifacts(decision.info.run_id)} == {"decision.json", "decision.html"}
    audit = client.get_experiment_by_name("pspnet-demo.promotions")
    assert audit is not None
    (move,) = client.search_runs([audit.experiment_id])
    assert (move.data.tags["number"], move.data.tags["state"]) == ("1", "done")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = checkout(tmp_path_factory.mktemp("undisturbed"), **SLOWER)
    with started(folder) as shell:
        assert wait_for(folder, shell, "complete"), output(folder)
    return folder


def test_kills_leave_no_trace_in_the_results(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(SEED)
    disturbed = clone(undisturbed, tmp_path / "clone")
    kills = [(step, seconds, False) for step, (times, seconds) in PLAN.items() for _ in range(share_of(times))]
    last_finetune = max(number for number, (step, *_) in enumerate(kills) if step == "finetune")
    kills.insert(last_finetune, ("finetune", PLAN["finetune"][1], True))
    for number, (step, seconds, only_dvc) in enumerate(kills, start=1):
        delay = kill_in(disturbed, step, seconds, only_dvc, rng)
        assert_outputs_are_whole(disturbed)
        with capsys.disabled():
            what = "dvc alone" if only_dvc else "everything"
            print(f"kill {number:2} of {len(kills)}, seed {SEED}: {what}, {delay:4.1f} s into {step}", flush=True)

    with started(disturbed) as shell:
        assert wait_for(disturbed, shell, "complete"), output(disturbed)
    wait_until_gone(disturbed)
    assert digests(disturbed) == digests(undisturbed)
    weights = [(folder / "models/segmenter/model.safetensors").read_bytes() for folder in (undisturbed, disturbed)]
    assert weights[0] == weights[1]
    for name in ("pretrain.csv", "finetune.csv"):
        assert (disturbed / "reports" / name).read_text() == (undisturbed / "reports" / name).read_text()
    assert_each_stage_is_one_run_with_every_epoch_once(disturbed)
    assert_one_version_and_one_decision(disturbed)


def test_a_new_start_beside_an_orphan_waits_for_it(undisturbed: Path, tmp_path: Path) -> None:
    """DVC alone is killed and the pipeline started again at once: two trainings never write one checkpoint."""
    folder = clone(undisturbed, tmp_path / "clone")
    with started(folder) as shell:
        assert wait_for(folder, shell, "Running stage 'finetune'"), output(folder)
        while not list((folder / ".pspnet/checkpoints").glob("finetune-*/state.safetensors")):
            time.sleep(0.1)
        trainer = next(process for process in processes(folder) if "finetune" in process.cmdline())
        trainer.send_signal(signal.SIGSTOP)  # it cannot even take notice
        kill_dvc(folder)
        again = subprocess.Popen(["dvc", "repro"], cwd=folder, env=environment(folder))
        time.sleep(12)  # time enough to reach the training, and be held up by the lock
        assert again.poll() is None
        trainer.send_signal(signal.SIGCONT)  # now it finds that its parent is gone, and goes
        assert again.wait(timeout=120) == 0
    assert digests(folder) == digests(undisturbed)
