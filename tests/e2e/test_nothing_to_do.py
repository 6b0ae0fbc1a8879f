"""`pspnet retrain` as a process: no flow where nothing changed, and one where only the registry has something to do."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.e2e.pipeline import checkout, run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
MODEL = "pspnet-demo"
NOTHING = f"Nothing has changed.\n{MODEL}: version 1 is the champion already\n"


def flow_runs(folder: Path) -> int:
    with closing(sqlite3.connect(folder / ".pspnet/prefect/prefect.db")) as database:
        return int(database.execute("select count(*) from flow_run").fetchone()[0])


def test_no_flow_is_started_where_nothing_changed(tmp_path: Path) -> None:
    folder = checkout(tmp_path, promotion__min_mean_iou=0.0)
    run(folder, "pspnet", "synthesize", "data/raw", "--images", "40", "--labelled", "28")
    assert run(folder, "pspnet", "retrain").endswith(f"{MODEL}: version 1 is now champion\n")
    assert flow_runs(folder) == 1
    assert run(folder, "pspnet", "retrain") == NOTHING
    assert flow_runs(folder) == 1

    MlflowClient(f"sqlite:///{folder}/.pspnet/mlflow.db").delete_registered_model_alias(MODEL, "champion")
    said = run(folder, "pspnet", "retrain")
    assert "Nothing has changed." not in said
    assert "Running stage" not in said
    assert flow_runs(folder) == 2
