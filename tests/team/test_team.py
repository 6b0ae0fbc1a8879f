"""A Prefect server, an MLflow server and a worker for each pool, all of them real. Each worker's clone has its own
cache.
"""

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event, Thread

import psutil
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelling

from tests.e2e.pipeline import digests
from tests.flows.processes import left_of
from tests.team.team import POOLS, RETRAIN, SOON_SECONDS, Plain, Team, command, kill
from tests.tracking.runs import history, runs
from tests.waiting import wait_until

# Each of pytest's two processes starts with half of the folder's tests. In this order, both halves take equally long.
pytestmark = [pytest.mark.team, pytest.mark.timeout(1500)]

LONG = 30  # epochs of a disturbed training run, which must still be running when its first checkpoint is seen
ON_TIME_SECONDS = 25  # allows for a worker that starts a moment early, and for a busy machine
PAUSE_SECONDS = 3  # how long a person pauses between two commands
MODEL = "pspnet-demo"


def trainings(mlflow: MlflowClient, flow_run: FlowRun) -> list[Run]:
    found = [one for one in runs(mlflow, MODEL) if one.data.tags["pspnet.stage"] == "finetune"]
    return [one for one in found if one.data.tags["prefect.flow_run"] == str(flow_run.id)]


def versions(mlflow: MlflowClient) -> dict[str, list[str]]:
    """Return the versions that each flow run registered."""
    found: dict[str, list[str]] = {}
    for version in mlflow.search_model_versions(f"name = '{MODEL}'"):
        found.setdefault(version.tags["prefect.flow_run"], []).append(version.version)
    return found


def made(team: Team, flow_run: FlowRun) -> dict[str, str]:
    return digests(team.cpu / ".pspnet/runs" / str(flow_run.id))


def assert_ended_well(team: Team, mlflow: MlflowClient, flow_run: FlowRun, epochs: int) -> None:
    """Check that the run completed with one version, no process left, and one training run in MLflow that has each
    epoch once.
    """
    team.completed(flow_run)
    (training,) = trainings(mlflow, flow_run)
    assert training.info.status == "FINISHED"
    steps = [step for step, _ in history(mlflow, training, "val_mean_iou")]
    assert len(steps) == epochs
    assert steps == sorted(set(steps))
    assert len(versions(mlflow)[str(flow_run.id)]) == 1
    team.until(lambda: not team.processes(), SOON_SECONDS, "processes are left")


@pytest.mark.usefixtures("undisturbed")
def test_a_scheduled_retraining_prepares_on_cpu_trains_on_gpu_and_the_next_one_runs_nothing(
    team: Team, mlflow: MlflowClient
) -> None:
    def scheduled() -> FlowRun:
        known = {one.id for one in team.retrainings()}
        team.schedule()
        new = team.until(
            lambda: [one for one in team.retrainings() if one.id not in known and one.start_time], 300, "nothing is due"
        )
        team.unschedule()
        return team.completed(new[0])

    first = scheduled()
    children = {child.name.partition(" ")[0]: child for child in team.children(first)}
    assert set(children) == {"pretrain", "finetune", "evaluate"}
    assert {child.work_pool_name for child in children.values()} == {"gpu"}
    assert sorted(path.name for path in (team.gpu / ".pspnet/runs").iterdir() if path.is_dir()) == [f"{first.id}-gpu"]
    champion = mlflow.get_model_version_by_alias(MODEL, "champion")
    assert champion.tags["prefect.flow_run"] == str(first.id)
    assert len(trainings(mlflow, first)) == 1

    second = scheduled()
    assert team.children(second) == []
    assert "Running stage" not in team.log(second)
    assert versions(mlflow) == {str(first.id): ["1"]}
    for one in (first, second):
        assert one.auto_scheduled and one.start_time and one.expected_start_time
        assert abs((one.start_time - one.expected_start_time).total_seconds()) < ON_TIME_SECONDS


def test_a_run_survives_a_power_cut_and_a_frozen_machine(team: Team, mlflow: MlflowClient, plain: Plain) -> None:
    changes = {"finetune__epochs": LONG, "finetune__validations": LONG, "finetune__optimizer__learning_rate": 0.013}
    flow_run = team.retrain(**changes)
    training = team.training()
    kill(*team.workers.values(), *(team.engine(pool) for pool in POOLS))
    training.resume()
    team.until(lambda: not team.processes(), SOON_SECONDS, "processes outlive their killed parents")
    team.deploy()  # the server still knows which runs must send heartbeats
    for pool in POOLS:
        team.start_worker(pool)
    with ThreadPoolExecutor(1) as beside, team.undisturbed(RETRAIN):
        made_by_dvc = beside.submit(plain.made, **changes)
        training = team.training()
        frozen = [team.workers["gpu"], team.engine("gpu"), *team.engine("gpu").children(recursive=True)]
        for one in frozen:
            one.suspend()
        team.start_worker("gpu")
        team.until(lambda: not command(training), 300, "a frozen process was not ended")
        with team.undisturbed():
            assert_ended_well(team, mlflow, flow_run, LONG)
        expected = made_by_dvc.result()
    assert left_of([training]) == []
    assert team.client.read_flow_run(flow_run.id).run_count == 2
    assert made(team, flow_run) == expected


@pytest.mark.usefixtures("undisturbed")
def test_a_mistake_in_params_fails_immediately_with_its_message(team: Team) -> None:
    mistake = team.finished(team.retrain(finetune__optimizer__learning_rate="fast"))
    assert mistake.state and mistake.state.is_failed() and mistake.state.message
    assert "params.yaml" in mistake.state.message and "finetune.optimizer.learning_rate" in mistake.state.message
    assert mistake.run_count == 1
    assert "Traceback" not in team.log(mistake)


@contextmanager
def somebody_at_work(team: Team) -> Iterator[None]:
    """Within the block, a person uses DVC in the checkout to which the cpu worker's worktrees belong."""
    over, failed = Event(), []

    def work() -> None:
        commands = (["status"], ["add", "data/raw"], ["repro", "prepare"], ["gc", "-wfq"])
        while not over.is_set():
            for words in commands:
                done = subprocess.run(
                    [team.warm, "-m", "dvc", *words], cwd=team.cpu, env=team.environment(team.cpu),
                    capture_output=True, text=True, timeout=120, check=False,
                )  # fmt: skip
                if done.returncode:
                    failed.append(f"dvc {' '.join(words)}: {done.stdout}{done.stderr}")
                over.wait(PAUSE_SECONDS)

    person = Thread(target=work)
    person.start()
    try:
        yield
    finally:
        over.set()
        person.join()
    assert not failed, failed


@pytest.mark.usefixtures("undisturbed")
def test_new_files_start_one_retraining_while_another_run_waits_and_a_person_works(
    team: Team, mlflow: MlflowClient
) -> None:
    def watch() -> list[FlowRun]:
        before = {one.id for one in team.retrainings()}
        team.completed(team.ask_for("watch/watch", settled_seconds=1))
        return [one for one in team.retrainings() if one.id not in before]

    raw = team.cpu / "data/raw"
    if found := watch():  # empty if the network has already been trained on this data
        team.completed(found[0])
        assert watch() == []
    for kind, suffix in (("images", "jpg"), ("masks", "png")):
        source = sorted((raw / kind).iterdir())[0]
        (raw / kind / f"new.{suffix}").write_bytes(source.read_bytes())
    with somebody_at_work(team):
        (first,) = watch()
        second = team.retrain(finetune__optimizer__learning_rate=0.02)
        for path in raw.rglob("*.jpg"):
            os.utime(path)
        assert watch() == []
        for one in (first, second):
            team.completed(one)
    assert {len(trainings(mlflow, one)) for one in (first, second)} == {1}
    assert set(made(team, first)) == set(made(team, second))


def dvc_of(training: psutil.Process) -> psutil.Process:
    (found,) = [one for one in training.parents() if "repro" in command(one)]
    return found


def test_a_cancelled_run_ends_its_processes_and_the_next_survives_lost_workers_and_mlflow(
    team: Team, mlflow: MlflowClient, plain: Plain
) -> None:
    changes = {"finetune__epochs": LONG, "finetune__validations": LONG, "finetune__optimizer__learning_rate": 0.011}
    cancelled = team.retrain(**changes)
    training = team.training()
    dvc = dvc_of(training)
    team.client.set_flow_run_state(cancelled.id, Cancelling())
    team.until(lambda: not command(dvc), SOON_SECONDS, "DVC was not asked to end")
    training.resume()
    ended = team.finished(cancelled, SOON_SECONDS)
    assert ended.state and ended.state.is_cancelled()
    team.until(lambda: not team.processes(), SOON_SECONDS, "a cancelled run leaves processes behind")

    flow_run = team.retrain(**changes)
    training = team.training()
    for pool in POOLS:
        kill(team.workers[pool])
        team.start_worker(pool)
    saved = team.saved_at()
    training.resume()
    wait_until(lambda: team.saved_at() > saved, SOON_SECONDS, "training did not continue without workers")
    kill(training)
    team.mlflow.stop()
    try:
        training = team.training()
        expected = plain.made(**changes)
        saved = team.saved_at()
        training.resume()
        team.until(
            lambda: team.saved_at() > saved or not training.is_running(),
            SOON_SECONDS,
            "training did not continue without MLflow",
        )
    finally:
        team.mlflow.start()
    with team.undisturbed():
        assert_ended_well(team, mlflow, flow_run, LONG)
    assert team.log(flow_run).count("It was killed") == 1
    assert {one.run_count for one in (team.client.read_flow_run(flow_run.id), *team.children(flow_run))} == {1}
    assert made(team, flow_run) == expected
