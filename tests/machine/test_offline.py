"""The locked versions of Prefect, MLflow and DVC work without access to anything outside this machine."""

import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pspnet.machine.offline import SWITCHES, configure_dvc, configure_dvc_by_hand, go_offline
from tests.command import call, pspnet
from tests.flows.server import copy_tables
from tests.parameters import ROOT
from tests.repository import new_repository

FLOW = """
from pspnet.machine.offline import go_offline
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
from pspnet.machine.offline import go_offline
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
    """Run the code in a new process with only these settings. Returns its output and its log."""
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
def test_prefect_runs_a_flow_without_a_server(tmp_path: Path, prefects_tables: Path) -> None:
    """This test fails if a dependency of Prefect's server is too new for the server, as fastapi 0.151 was."""
    copy_tables(prefects_tables, tmp_path / "prefect")
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
def test_mlflow_stores_a_run_in_a_file(tmp_path: Path) -> None:
    printed, _ = python(RUN, tmp_path)
    assert printed == "{'loss': 0.5}\n"
    assert (tmp_path / "mlflow.db").is_file()
    assert not (tmp_path / "mlruns").exists()


def test_servers_started_by_hand_send_no_telemetry() -> None:
    """Every code block in the docs that starts a server reads docs/servers.env first."""
    lines = (ROOT / "docs/servers.env").read_text().splitlines()
    settings = dict(line.split("=") for line in lines if not line.startswith("#"))
    assert settings == {name: SWITCHES[name] for name in settings}
    assert {"MLFLOW_DISABLE_TELEMETRY", "PREFECT_SERVER_ANALYTICS_ENABLED"} < set(settings)
    started = []
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        for block in re.findall(r"(?:^    .*\n)+", page.read_text(), re.MULTILINE):
            if found := re.search(r"^    (prefect server start|mlflow (server|ui))", block, re.MULTILINE):
                started.append(found[1])
                assert ". docs/servers.env" in block[: found.start()]
    assert sorted(started) == ["mlflow server", "mlflow server", "prefect server start"]


def test_go_offline_keeps_the_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SWITCHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "true")
    go_offline()
    assert {name: os.environ[name] for name in SWITCHES} == {**SWITCHES, "PREFECT_SERVER_ANALYTICS_ENABLED": "true"}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def index_of_dvc(checkout: Path) -> Path:
    """Return the folder of DVC's index, which DVC unpickles."""
    from dvc.repo import Repo

    with Repo(str(checkout)) as repo:
        return Path(repo.site_cache_dir)


def shows_the_index() -> None:
    configure_dvc(Path(".pspnet"))
    print(index_of_dvc(Path.cwd()))


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("DVC_SITE_CACHE_DIR", raising=False)
    (tmp_path / "checkout").mkdir()
    new_repository(tmp_path / "checkout")
    (tmp_path / "checkout/dvc.yaml").write_text("stages: {}\n")
    return tmp_path / "checkout"


def test_a_command_keeps_dvcs_index_in_a_private_folder(checkout: Path) -> None:
    (checkout / ".pspnet").mkdir(mode=0o755)  # the mode that earlier versions used
    done = pspnet("data", "diff", cwd=checkout)
    assert "Traceback" not in done.stderr
    assert (mode(checkout / ".pspnet"), mode(checkout / ".pspnet/dvc")) == (0o700, 0o700)
    done = call(shows_the_index, checkout)
    assert Path(done.stdout.strip()).is_relative_to(checkout / ".pspnet/dvc"), done


def test_a_state_folder_named_by_the_user_keeps_its_mode(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir(mode=0o755)
    pspnet("data", "diff", cwd=checkout, PSPNET_STATE=str(tmp_path / "mine"))
    assert (mode(tmp_path / "mine"), mode(tmp_path / "mine/dvc")) == (0o755, 0o700)


def test_dvc_run_by_hand_keeps_its_index_there_too(checkout: Path) -> None:
    configure_dvc_by_hand(checkout)
    assert index_of_dvc(checkout).is_relative_to(checkout / ".pspnet/dvc")
    assert (mode(checkout / ".pspnet"), mode(checkout / ".pspnet/dvc")) == (0o700, 0o700)


def test_the_dvc_settings_of_the_user_are_kept(checkout: Path, tmp_path: Path) -> None:
    (checkout / ".dvc/config.local").write_text(f"[core]\n    site_cache_dir = {tmp_path}/mine\n")
    configure_dvc_by_hand(checkout)
    assert index_of_dvc(checkout).is_relative_to(tmp_path / "mine")


def test_every_locked_package_has_hashes() -> None:
    requirements = re.split(r"\n(?=\S)", (ROOT / "requirements.lock").read_text())
    packages = [text for text in requirements if not text.startswith("#")]
    assert len(packages) > 200
    assert [text.splitlines()[0] for text in packages if "--hash=sha256:" not in text] == []


def test_build_and_install_tools_are_locked_too() -> None:
    locked = re.findall(r"^([a-z0-9-]+==\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert {*project["build-system"]["requires"]} <= {*locked}
    assert {"uv", "editables", "hatchling"} <= {name.partition("==")[0] for name in locked}
    recipe = (ROOT / "Makefile").read_text().partition("$(INSTALLED): ")[2]
    installs = [line for line in recipe.splitlines() if "pip install" in line]
    assert len(installs) == 3
    assert all("--require-hashes" in line or "--no-deps --no-build-isolation --editable" in line for line in installs)
    assert "python -m pspnet.machine.offline" in recipe
