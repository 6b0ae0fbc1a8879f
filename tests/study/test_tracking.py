"""What MLflow shows of a study, with a real sender."""

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.study.conftest import run_study
from tests.tracking.runs import artifacts, runs


@pytest.mark.e2e
def test_mlflow_shows_a_study_with_its_runs_as_children(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PSPNET_TRACKING", "on")
    outcome = run_study(prepared, tmp_path, seeds=1, arms=("mean_teacher",))
    assert outcome.finished == outcome.runs == 3
    client = MlflowClient(f"sqlite:///{(tmp_path / 'state/mlflow.db').resolve()}")
    (parent,) = runs(client, "pspnet-demo", "study")
    children = {run.info.run_name: run for run in runs(client, "pspnet-demo")}
    assert len(children) == 4
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    teacher = children["mean_teacher, 3 masks, 4 steps, seed 0"]
    assert teacher.data.tags["pspnet.study.arm"] == "mean_teacher"
    assert teacher.data.params["finetune.unlabeled.kind"] == "mean_teacher"
    assert {"test_mean_iou", "val_mean_iou", "flops", "seconds", "test_iou/sky", "loss"} <= set(teacher.data.metrics)
    assert "gain/mean_teacher 3 masks 4 steps" in parent.data.metrics
    assert artifacts(client, children["result"]) == {"study.html", "study.csv"}
    assert runs(client, "pspnet-demo", "pipeline") == [], "`pspnet runs` compares pipelines only"
