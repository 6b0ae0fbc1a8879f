"""`pspnet runs` as a user runs it."""

import json
import shutil
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pspnet.machine.events import new_log
from pspnet.tracking.backlog import replay
from pspnet.tracking.journal import Journal
from tests.command import pspnet
from tests.parameters import ROOT
from tests.tracking.runs import the_run

MODEL = "pspnet-demo"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path


def pipeline(project: Path, key: str, started: int, scores: dict[str, float] | None, **params: str) -> None:
    """Write the journal of the last stage of a pipeline."""
    folder, log = project / f".pspnet/tracking/evaluate-{key}", new_log(project / ".pspnet")
    journal = Journal(folder, log, stage="evaluate", params={}, experiment=MODEL, started=started)
    about = {"key": key, "params": {"runtime.seed": "0", **params}}
    process = {"host": "elsewhere", "pid": 1, "created": 0}
    journal.add("begin", attempt=1, started=started, process=process, tags={}, pipeline=about)
    if scores is not None:
        journal.add("headline", values=scores, pipeline=key)
        journal.add("end", attempt=1, status="FINISHED", message="")


@pytest.fixture
def two(project: Path, empty_database: Path) -> Path:
    (project / ".pspnet").mkdir()
    shutil.copy(empty_database, project / ".pspnet")
    scores = {"val_mean_iou": 0.5, "test_mean_iou": 0.25, "test_iou/road": 0.125, "test_iou/sky": 0.75}
    pipeline(project, "first", 1_700_000_000_000, scores, **{"finetune.optimizer.learning_rate": "0.002"})
    pipeline(project, "second", 1_700_000_600_000, None, **{"finetune.optimizer.learning_rate": "0.001"})
    return project


def test_without_runs_the_command_says_how_to_start_one(project: Path) -> None:
    done = pspnet("runs", cwd=project)
    assert (done.stdout, done.returncode) == ("", 0)
    where = f"sqlite:///{project}/.pspnet/mlflow.db"
    assert done.stderr == f"{where} has no runs of pspnet-demo yet. Start one with `make retrain`.\n"
    assert json.loads(pspnet("runs", "--json", cwd=project).stdout) == []
    assert not (project / ".pspnet").exists()


def test_runs_are_listed_newest_first_with_the_params_that_differ(two: Path) -> None:
    done = pspnet("runs", cwd=two)
    assert (done.stderr, done.returncode) == ("", 0)
    title, _, second, first = ([cell.strip() for cell in line.split("│")] for line in done.stdout.splitlines()[-4:])
    assert "what differs" in title[-1]
    assert first[2:] == ["done", "0.500", "0.250", "finetune.optimizer.learning_rate: 0.002"]
    assert second[2:] == ["running", "", "", "finetune.optimizer.learning_rate: 0.001"]
    assert "seed" not in done.stdout


def test_runs_show_their_version_and_every_class_on_request(two: Path) -> None:
    replay(two / ".pspnet")
    client = MlflowClient(f"sqlite:///{two}/.pspnet/mlflow.db")
    experiment = client.get_experiment_by_name(MODEL)
    assert experiment
    (first,) = client.search_runs([experiment.experiment_id], "tags.`pspnet.pipeline` = 'first'")
    client.set_tag(first.info.run_id, "pspnet.version", "17")
    done = pspnet("runs", "--classes", cwd=two)
    title, _, _, row = done.stdout.splitlines()[-4:]
    titles = [cell.strip() for cell in title.split("┃")]
    cells = dict(zip(titles, [cell.strip() for cell in row.split("│")], strict=True))
    assert (cells["version"], cells["road"], cells["sky"]) == ("17", "0.125", "0.750")
    only = json.loads(pspnet("runs", "--json", "--limit", "1", cwd=two).stdout)
    assert [run["pipeline"] for run in only] == ["second"]


def test_a_narrow_terminal_gets_lines_instead_of_a_table(two: Path) -> None:
    done = pspnet("runs", "--classes", cwd=two, COLUMNS="50")
    assert "│" not in done.stdout
    assert "  test mIoU: 0.250\n" in done.stdout
    assert "  sky: 0.750\n" in done.stdout
    assert "  finetune.optimizer.learning_rate: 0.002\n" in done.stdout


def test_json_has_everything(two: Path) -> None:
    second, first = json.loads(pspnet("runs", "--json", cwd=two).stdout)
    assert (first["status"], second["status"]) == ("FINISHED", "RUNNING")
    assert first["started"] == "2023-11-14T22:13:20+00:00"
    assert first["metrics"]["test_iou/road"] == 0.125
    assert first["params"] == {"runtime.seed": "0", "finetune.optimizer.learning_rate": "0.002"}
    assert first["version"] is None
    client = MlflowClient(f"sqlite:///{two}/.pspnet/mlflow.db")
    assert {stage["stage"] for stage in first["stages"]} == {"evaluate"}
    assert first["stages"][0]["run_id"] != second["stages"][0]["run_id"]
    with pytest.raises(ValueError, match="too many values"):
        the_run(client, MODEL)


@pytest.mark.parametrize("uri", ["http://me:secret@127.0.0.1:9", "rubbish://me:secret@nowhere"])
def test_an_unreachable_server_is_reported_without_the_password(project: Path, uri: str) -> None:
    pipeline(project, "key", 1_700_000_000_000, None)
    done = pspnet("runs", cwd=project, MLFLOW_TRACKING_URI=uri)
    assert (done.stdout, done.returncode) == ("", 75 if uri.startswith("http") else 1)  # because a server may come back
    assert done.stderr.startswith(uri.replace("secret", "***") + ": cannot be read (")
    assert len(done.stderr.splitlines()) == 1
    assert "secret" not in done.stderr
