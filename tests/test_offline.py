"""The engines start and work on this machine alone, with the versions that are locked."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from pspnet.offline import SWITCHES, go_offline

FLOW = """
from pspnet.offline import go_offline
go_offline()
from prefect import flow, task
from prefect.settings import PREFECT_SERVER_ANALYTICS_ENABLED

@task
def double(number: int) -> int:
    return 2 * number

@flow
def trivial() -> int:
    return double(21)

assert not PREFECT_SERVER_ANALYTICS_ENABLED.value()
print(trivial())
"""

RUN = """
from pspnet.offline import go_offline
go_offline()
import mlflow
from mlflow.environment_variables import MLFLOW_DISABLE_TELEMETRY

assert MLFLOW_DISABLE_TELEMETRY.get()
mlflow.set_tracking_uri("sqlite:///mlflow.db")
mlflow.set_experiment("offline")
with mlflow.start_run() as run:
    mlflow.log_metric("loss", 0.5)
print(mlflow.MlflowClient().get_run(run.info.run_id).data.metrics)
"""


def python(code: str, folder: Path, **settings: str) -> tuple[str, str]:
    """What a fresh process that knows no settings but these prints; whatever it has started ends with it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**kept, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, log = process.communicate(timeout=180)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, log
    return printed, log


@pytest.mark.e2e
def test_prefect_runs_a_flow_where_nobody_has_started_a_server(tmp_path: Path) -> None:
    """It fails when a dependency of the server has outrun it, as fastapi 0.151 has."""
    printed, log = python(
        FLOW,
        tmp_path,
        PREFECT_HOME=str(tmp_path / "prefect"),
        PREFECT_SERVER_EPHEMERAL_ENABLED="true",
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="120",
    )
    assert printed == "42\n"
    assert "temporary server on http://127.0.0.1" in log
    with sqlite3.connect(tmp_path / "prefect/prefect.db") as database:
        states = database.execute("SELECT state_type FROM flow_run").fetchall()
    database.close()
    assert states == [("COMPLETED",)]


@pytest.mark.e2e
def test_mlflow_keeps_a_run_in_a_file(tmp_path: Path) -> None:
    printed, _ = python(RUN, tmp_path)
    assert printed == "{'loss': 0.5}\n"
    assert (tmp_path / "mlflow.db").is_file()
    assert not (tmp_path / "mlruns").exists()


def test_everything_is_switched_off_but_what_a_person_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SWITCHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "true")
    go_offline()
    assert {name: os.environ[name] for name in SWITCHES} == {**SWITCHES, "PREFECT_SERVER_ANALYTICS_ENABLED": "true"}
