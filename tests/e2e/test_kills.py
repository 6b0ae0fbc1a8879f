"""SIGKILL at random moments of every step, then the same command again, gives the results of an undisturbed run."""

import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.tracking import MlflowClient

from pspnet.config.reading import read_yaml
from pspnet.tracking.journal import JournalReader
from tests.e2e.pipeline import STAND_INS, STEPS, checkout, clone, copied, digests, environment
from tests.files import made_once
from tests.flows.processes import GONE_SECONDS, cmdline, kill_all, left, processes_of
from tests.kills import kill_seed
from tests.tracking.runs import history, runs, the_run
from tests.waiting import wait_until

pytestmark = [pytest.mark.kills, pytest.mark.timeout(1500)]

SYNTHESIZE = "pspnet synthesize data/raw --images 80 --labeled 32"
REGISTER = "pspnet register models/segmenter --promote"
PIPELINE = f"""
echo "Running stage 'synthesize':" && {SYNTHESIZE} &&
echo "Running stage 'data':" && pspnet doctor --quick && dvc add --quiet data/raw && dvc repro &&
echo "Running stage 'register':" && {REGISTER} && echo complete
"""
REPRODUCE = "pspnet doctor --quick && dvc repro"  # the doctor repairs the locks of a killed DVC
UP_TO = {  # the commands that run the pipeline up to each step
    "synthesize": f"echo \"Running stage 'synthesize':\" && {SYNTHESIZE}",
    "prepare": f"{SYNTHESIZE} && pspnet doctor --quick && dvc add --quiet data/raw && dvc repro prepare",
    "pretrain": f"{REPRODUCE} pretrain",
    "finetune": f"{REPRODUCE} finetune",
    "evaluate": REPRODUCE,
    "register": f"{REPRODUCE} && echo \"Running stage 'register':\" && {REGISTER}",
}
TRAININGS = ("pretrain", "finetune")
OUTPUTS = {
    "synthesize": ["data/raw"],
    "prepare": ["data/prepared", "reports/runs/prepare.json"],
    "pretrain": [
        "models/backbone",
        "reports/pretrain.csv",
        "reports/pretrain.html",
        "reports/runs/pretrain.json",
    ],
    "finetune": ["models/segmenter", "reports/finetune.csv", "reports/runs/finetune.json"],
    "evaluate": ["reports/evaluation", "reports/metrics.json", "reports/runs/evaluate.json"],
    "register": [],
}
LAST_FILE = {  # the file written last into each output folder; the folder must appear as a whole
    "data/raw": "synthetic.json",
    "data/prepared": "dataset.json",
    "models/backbone": "backbone.json",
    "models/segmenter": "model.json",
    "reports/evaluation": "report.html",
}
SLOWER: dict[str, Any] = {"pretrain__epochs": 5, "finetune__epochs": 20, "promotion__min_mean_iou": 0.0}
SECONDS = ".pspnet/seconds.json"  # file with the duration of each step


@dataclass(frozen=True)
class Kill:
    step: str
    only_dvc: bool = False  # kill only DVC instead of everything
    real: bool = False  # use the real commands, which start slowly, instead of the warm ones

    def __str__(self) -> str:
        return f"{'dvc alone' if self.only_dvc else 'everything'}{', real commands' if self.real else ''}"


PLAN = [
    Kill("synthesize"),
    Kill("prepare", real=True),
    Kill("prepare"),
    Kill("pretrain", real=True),
    *[Kill("pretrain")] * 3,
    *[Kill("finetune")] * 4,
    Kill("finetune", only_dvc=True, real=True),
    Kill("finetune"),
    Kill("evaluate", real=True),
    Kill("evaluate"),
    *[Kill("register")] * 5,
]


@contextmanager
def started(folder: Path, commands: str = PIPELINE, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    env = environment(folder, PSPNET_CHECKPOINT_SECONDS="0.1", **more)
    with (
        (folder / ".pspnet.log").open("w") as log,
        subprocess.Popen(
            ["bash", "-c", commands], cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True
        ) as shell,
    ):
        try:
            yield shell
        finally:
            kill_all(folder)


def output(folder: Path) -> str:
    return (folder / ".pspnet.log").read_text()


def kill_dvc(folder: Path) -> None:
    (dvc,) = [process for process in processes_of(folder) if "repro" in process.cmdline()]
    dvc.kill()


def wait_until_gone(folder: Path) -> None:
    """Wait until no process is left. A killed process may still be waiting for a busy disk."""
    assert left(folder, 12 * GONE_SECONDS) == []


def wait_for(folder: Path, shell: subprocess.Popen[bytes], text: str) -> bool:
    """Wait until `text` is printed. Returns False if the pipeline ends first."""
    while text not in output(folder):
        if shell.poll() is not None:
            return text in output(folder)
        time.sleep(0.02)
    return True


def forget(folder: Path, step: str) -> None:
    """Remove everything that a step has left behind, so that the next run starts it from scratch."""
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


def share(number: int) -> float:
    """Return the latest point at which this planned kill can happen, as a fraction of the step's duration."""
    step = PLAN[number].step
    earlier, all_of_it = (sum(kill.step == step for kill in kills) for kills in (PLAN[:number], PLAN))
    if step in TRAININGS:  # each attempt at training resumes where the last one was killed
        return 1.5 / all_of_it
    if step == "register":  # a finished registration leaves nothing to kill
        return (earlier + 1) / all_of_it
    return 1.0


def kill_in(
    folder: Path, number: int, seconds: dict[str, float], commands: dict[str, str], rng: random.Random
) -> float:
    """Start the step and kill it. Returns the seconds until the kill. `seconds`: the duration of each step."""
    kill, step = PLAN[number], PLAN[number].step
    for _ in range(10):
        longest, start = seconds[step] * share(number), time.time()
        delay = rng.triangular(0, longest, 0.7 * longest)
        with started(folder, UP_TO[step], **({} if kill.real else commands)) as shell:
            if wait_for(folder, shell, f"Running stage '{step}'") and wait_for_work(folder, shell, step, start):
                time.sleep(delay)
                running = output(folder).rpartition("Running stage '")[2].partition("'")[0]
                if shell.poll() is None and running == step:
                    kill_dvc(folder) if kill.only_dvc else kill_all(folder)
                    wait_until_gone(folder)
                    return delay
        forget(folder, step)  # the step ended before the kill, because it was faster than measured
        seconds[step] *= 0.7
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
        steps = [step for step, _ in history(client, found[name], "loss")]
        assert len(steps) == SLOWER[f"{name}__epochs"]
        assert steps == sorted(set(steps))
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


@pytest.fixture(scope="session")
def at_once(stand_ins: Path) -> dict[str, str]:
    """Return environment variables for commands that start instantly and are killed with their checkout."""
    return {STAND_INS: str(stand_ins)}


@pytest.fixture(scope="session")
def undisturbed(shared: Path, at_once: dict[str, str]) -> Path:
    return made_once(shared / "e2e/undisturbed-by-kills", lambda folder: run_once(folder, at_once))


def run_once(folder: Path, commands: dict[str, str]) -> None:
    """Run the whole pipeline, and store the duration of each step."""
    checkout(folder, **SLOWER)
    moments: dict[str, float] = {}
    with started(folder, **commands) as shell:
        for step in ("synthesize", "data", *list(OUTPUTS)[1:]):
            assert wait_for(folder, shell, f"Running stage '{step}'"), output(folder)
            moments[step] = time.time()
        assert wait_for(folder, shell, "complete"), output(folder)
    ends = [*list(moments.values())[1:], time.time()]
    starts = moments | {step: begun(folder, step)[0] for step in STEPS}
    took = {step: end - starts[step] for step, end in zip(moments, ends, strict=True)}
    (folder / SECONDS).write_text(json.dumps(took))


def test_kills_leave_no_trace_in_the_results(
    undisturbed: Path, at_once: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(kill_seed())
    seconds = json.loads((undisturbed / SECONDS).read_text())
    disturbed = clone(undisturbed, tmp_path / "clone")
    for number, kill in enumerate(PLAN):
        delay = kill_in(disturbed, number, seconds, at_once, rng)
        assert_outputs_are_whole(disturbed)
        with capsys.disabled():
            where = f"{kill}, {delay:4.1f} s into {kill.step}"
            print(f"kill {number + 1:2} of {len(PLAN)}, seed {kill_seed()}: {where}", flush=True)

    with started(disturbed) as shell:
        assert wait_for(disturbed, shell, "complete"), output(disturbed)
    wait_until_gone(disturbed)
    assert digests(disturbed) == digests(undisturbed)
    weights = [(folder / "models/segmenter/model.safetensors").read_bytes() for folder in (undisturbed, disturbed)]
    assert weights[0] == weights[1]
    for name in ("pretrain.csv", "pretrain.html", "finetune.csv"):
        assert (disturbed / "reports" / name).read_text() == (undisturbed / "reports" / name).read_text()
    assert_each_stage_is_one_run_with_every_epoch_once(disturbed)
    assert_one_version_and_one_decision(disturbed)


def test_a_restart_waits_for_an_orphan(undisturbed: Path, tmp_path: Path) -> None:
    """If only DVC is killed and immediately restarted, two training processes never write the same checkpoint."""
    folder = copied(undisturbed, tmp_path / "copy")
    forget(folder, "finetune")
    shutil.rmtree(folder / ".pspnet/tracking")
    with started(folder, UP_TO["finetune"]) as shell:
        assert wait_for(folder, shell, "Running stage 'finetune'"), output(folder)
        [saved] = wait_until(lambda: checkpoints(folder))
        took = saved.stat().st_mtime - begun(folder, "finetune")[0]
        trainings = [process for process in processes_of(folder) if {"finetune", "--history"} <= set(cmdline(process))]
        # The other processes are the workers of its loader.
        trainer = min(trainings, key=lambda process: process.create_time())
        trainer.send_signal(signal.SIGSTOP)  # stopped, it cannot notice that its parent has died
        before = saved.stat().st_mtime_ns
        kill_dvc(folder)
        shell.wait(60)  # a zombie would look alive to DVC
        again = subprocess.Popen(["dvc", "repro", "finetune"], cwd=folder, env=environment(folder))
        second = wait_until(lambda: begun(folder, "finetune")[1:])[0]
        # If the second process did not wait for the lock, this would be enough time to save a first checkpoint.
        wait_until(lambda: time.time() > second + max(2, 3 * took))
        assert again.poll() is None
        assert saved.stat().st_mtime_ns == before
        trainer.send_signal(signal.SIGCONT)  # now the first process notices that its parent is gone, and exits
        assert again.wait(timeout=240) == 0
    assert digests(folder) == digests(undisturbed)


def checkpoints(folder: Path) -> list[Path]:
    return list((folder / ".pspnet/checkpoints").glob("finetune-*/state.safetensors"))


def wait_for_work(folder: Path, shell: subprocess.Popen[bytes], step: str, start: float) -> bool:
    """Wait until an attempt after `start` has loaded its packages. Returns False if the pipeline ended first."""
    if step in STEPS:
        wait_until(lambda: shell.poll() is not None or any(moment > start for moment in begun(folder, step)))
    return shell.poll() is None


def begun(folder: Path, step: str) -> list[float]:
    """Return the time at which each attempt at the step had loaded its packages. After that, training waits for the
    lock.
    """
    journals = (folder / ".pspnet/tracking").glob(f"{step}-*")
    entries = [record.entry for journal in journals for record in JournalReader(journal).new()]
    return [entry["time"] / 1000 for entry in entries if entry["kind"] == "begin"]
