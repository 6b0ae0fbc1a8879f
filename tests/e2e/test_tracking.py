"""What MLflow contains after `pspnet retrain` has run the pipeline, with a database in a file."""

import json
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from pspnet.config.reading import read_yaml
from tests.e2e.pipeline import STEPS, environment, run, write_params
from tests.tracking.runs import artifacts, history, inputs, runs, the_run
from tests.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

MODEL = "pspnet-demo"


@pytest.fixture(scope="module")
def client(retrained_once: Path) -> MlflowClient:
    return client_of(retrained_once)


def client_of(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder}/.pspnet/mlflow.db")


def children(client: MlflowClient, parent: Run) -> dict[str, Run]:
    found = [run for run in runs(client, MODEL) if run.data.tags["mlflow.parentRunId"] == parent.info.run_id]
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


def test_a_pipeline_is_a_run_and_its_stages_are_its_children(client: MlflowClient, retrained_once: Path) -> None:
    parent = the_run(client, MODEL, "pipeline")
    stages = children(client, parent)
    assert list(stages) == list(STEPS)
    assert {run.info.status for run in (parent, *stages.values())} == {"FINISHED"}
    declared = read_yaml(retrained_once / "dvc.yaml")["stages"]
    for name, stage in stages.items():
        sections = {param.partition(".")[0] for param in stage.data.params}
        assert sections == set(declared[name]["params"])
        assert stage.data.params.items() <= parent.data.params.items()
        assert stage.data.tags["pspnet.kind"] == "stage"
        assert any(metric.startswith("system/") for metric in stage.data.metrics)
        assert len(stage.data.tags["mlflow.source.git.commit"]) == 40


def test_each_epoch_is_recorded_once(client: MlflowClient, retrained_once: Path) -> None:
    stages = children(client, the_run(client, MODEL, "pipeline"))
    for name in ("pretrain", "finetune"):
        header, *lines = (retrained_once / f"reports/{name}.csv").read_text().splitlines()
        columns = header.split(",")
        for column in columns[2:]:
            expected = [(int(line.split(",")[0]), float(line.split(",")[columns.index(column)])) for line in lines]
            assert history(client, stages[name], column) == expected


def test_the_pipeline_run_has_the_headline_metrics(client: MlflowClient, retrained_once: Path) -> None:
    measured = json.loads((retrained_once / "reports/metrics.json").read_text())
    metrics = the_run(client, MODEL, "pipeline").data.metrics
    assert metrics["test_mean_iou"] == measured["mean_iou"]
    assert metrics["test_pixel_accuracy"] == measured["pixel_accuracy"]
    assert {f"test_iou/{name}": iou for name, iou in measured["class_iou"].items()}.items() <= metrics.items()
    best = max(value for _, value in history(client, runs_by_name(client)["finetune"], "val_mean_iou"))
    assert metrics["val_mean_iou"] == best


def runs_by_name(client: MlflowClient) -> dict[str, Run]:
    return {run.info.run_name: run for run in reversed(runs(client, MODEL))}  # the oldest run of each name


def test_each_stage_names_its_data_and_keeps_its_files(client: MlflowClient, retrained_once: Path) -> None:
    stages = runs_by_name(client)
    fingerprints = json.loads((retrained_once / "data/prepared/dataset.json").read_text())["fingerprints"]
    splits = {
        "prepare": {"train", "val", "test", "unlabeled"},
        "pretrain": {"train", "unlabeled"},
        "finetune": {"train", "val"},
        "evaluate": {"test"},
    }
    for name, expected in splits.items():
        found = {item.tags[0].value: item.dataset.digest for item in inputs(stages[name])}
        assert found == {split: fingerprints[split][:36] for split in expected}
    assert artifacts(client, stages["prepare"]) == {"dataset.json", "data_report.html", "problems.csv"}
    assert artifacts(client, stages["pretrain"]) == {"pretrain.csv", "pretrain.html"}
    assert artifacts(client, stages["finetune"]) == {"finetune.csv"}
    files = artifacts(client, stages["evaluate"])
    assert {"report.html", "report.json", "metrics.json", "confusion.csv", "images.parquet"} <= files
    assert "pictures/best-01.png" in files


def test_a_run_record_names_its_run(client: MlflowClient, retrained_once: Path) -> None:
    stages = runs_by_name(client)
    parent = the_run(client, MODEL, "pipeline")
    for name in STEPS:
        record = json.loads((retrained_once / f"reports/runs/{name}.json").read_text())
        assert record["run_id"] == stages[name].info.run_id
        assert record["journal"] == stages[name].data.tags["pspnet.journal"]
        assert record["pipeline"] == parent.data.tags["pspnet.pipeline"]
        assert record["seconds"] > 0


@pytest.mark.usefixtures("warm")
def test_records_of_another_pipeline_are_sent_once_the_server_is_back(
    retrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The records of the finished stages are kept until the next command that uses MLflow."""
    client = client_of(retrained)
    write_params(retrained, finetune__optimizer__learning_rate=0.001)
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        output = run(retrained, "dvc", "repro", PSPNET_TRACKING="on")
    assert [step for step in STEPS if f"Running stage '{step}'" in output] == ["finetune", "evaluate"]
    assert output.count("have not reached MLflow at http://127.0.0.1:9") == 2
    assert len(runs(client, MODEL, "pipeline")) == 1
    shown = json.loads(run(retrained, "pspnet", "runs", "--json", "--limit", "1"))
    assert shown[0]["params"]["finetune.optimizer.learning_rate"] == "0.001"
    assert [(stage["stage"], stage["status"]) for stage in shown[0]["stages"]] == [
        ("finetune", "FINISHED"),
        ("evaluate", "FINISHED"),
    ]
    measured = json.loads((retrained / "reports/metrics.json").read_text())
    assert shown[0]["metrics"]["test_mean_iou"] == measured["mean_iou"]

    first, second = runs(client, MODEL, "pipeline")
    assert list(children(client, first)) == list(STEPS)
    assert list(children(client, second)) == ["finetune", "evaluate"]
    assert second.data.params["finetune.optimizer.learning_rate"] == "0.001"
    assert set(second.data.metrics) == set(first.data.metrics)
    table = run(retrained, "pspnet", "runs")
    assert "finetune.optimizer.learning_rate" in table
    assert "finetune.batch_size" not in table


@pytest.mark.usefixtures("warm")
def test_stopped_training_resumes_in_the_same_run(retrained: Path) -> None:
    client = client_of(retrained)
    epochs = 100  # enough that it is still running when its first epochs have reached MLflow
    write_params(retrained, finetune__epochs=epochs)
    command = shlex.split(
        "pspnet finetune --prepared data/prepared --backbone models/backbone --out models/other --history other.csv"
    )

    def stopped_runs() -> list[Run]:
        return [run for run in runs(client, MODEL) if run.data.params.get("finetune.validations") == str(epochs)]

    env = environment(retrained, PSPNET_TRACKING="on")
    with subprocess.Popen(command, cwd=retrained, env=env, stderr=subprocess.PIPE, text=True) as training:
        wait_until(lambda: training.poll() is not None or any(history(client, run, "loss") for run in stopped_runs()))
        training.send_signal(signal.SIGINT)
        _, errors = training.communicate(timeout=60)
    assert training.returncode == 130
    assert errors.strip().endswith("The same command continues from there.")
    assert "MLflow" not in errors
    (first,) = stopped_runs()
    assert first.info.status == "KILLED"
    assert first.data.tags["pspnet.message"] in errors
    run(retrained, *command, PSPNET_TRACKING="on")
    (again,) = stopped_runs()
    assert (again.info.run_id, again.info.status) == (first.info.run_id, "FINISHED")
    steps = [step for step, _ in history(client, again, "loss")]
    assert len(steps) == epochs
    assert steps == sorted(set(steps))
