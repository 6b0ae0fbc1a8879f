"""`pspnet retrain` on one machine, with nothing started before."""

import json
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from pspnet.config.reading import read_yaml
from tests.e2e.pipeline import STEPS, checkout, clone, digests, environment, reproduce, run, write_params
from tests.flows.processes import left
from tests.tracking.told import runs, the_run

pytestmark = pytest.mark.timeout(400)
MODEL = "pspnet-demo"
SYNTHESIZE = ("pspnet", "synthesize", "data/raw", "--images", "40", "--labelled", "28")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = checkout(tmp_path_factory.mktemp("checkout"), promotion__min_mean_iou=0.0)
    run(folder, *SYNTHESIZE)
    said = retrain(folder)
    assert ran(said) == list(STEPS)
    assert said.endswith(f"{MODEL}: version 1 is now champion\n")
    assert left(folder) == []
    return folder


def retrain(folder: Path, *options: str, status: int = 0) -> str:
    done = subprocess.run(
        ["pspnet", "retrain", *options], cwd=folder, env=environment(folder) | {"COLUMNS": "200"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stdout
    return done.stdout


def ran(said: str) -> list[str]:
    return [step for step in STEPS if f"Running stage '{step}'" in said]


def mlflow(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder}/.pspnet/mlflow.db")


def in_prefect(folder: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(folder / ".pspnet/prefect/prefect.db")) as database:
        return database.execute(query).fetchall()


def table(folder: Path, order: str) -> list[dict[str, Any]]:
    """Of the stages; Prefect keeps it as text in JSON."""
    [(data,)] = in_prefect(folder, f"select data from artifact where key = 'stages' order by {order} limit 1")
    rows: list[dict[str, Any]] = json.loads(json.loads(data))
    return rows


def standing(folder: Path) -> dict[str, bytes]:
    """What a run in a worktree must not touch."""
    names = ("params.yaml", "dvc.lock", "data/raw.dvc", "models/segmenter/model.json", "reports/metrics.json")
    return {name: (folder / name).read_bytes() for name in names}


def test_it_makes_what_dvc_by_hand_makes(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    by_hand = clone(finished, tmp_path_factory.mktemp("hand") / "clone")
    run(by_hand, *SYNTHESIZE)
    assert reproduce(by_hand) == list(STEPS)
    assert digests(by_hand) == digests(finished)
    assert len(digests(by_hand)) == 7


def test_the_results_are_in_the_remote(finished: Path) -> None:
    assert json.loads(run(finished, "dvc", "data", "status", "--not-in-remote", "--json")).get("not_in_remote") is None


def test_prefect_shows_a_task_for_each_stage_and_what_is_around_them(finished: Path) -> None:
    tasks = in_prefect(finished, "select name, state_name, run_count from task_run order by start_time")
    around = ["data/raw", *STEPS, "register", "push"]
    assert tasks[: len(around)] == [(name, "Completed", 1) for name in around]


def test_prefect_shows_how_the_stages_ended(finished: Path) -> None:
    rows = table(finished, "created")
    assert [(row["stage"], row[""], row["where"]) for row in rows] == [(step, "ran", "here") for step in STEPS]
    assert all(row["seconds"] > 0 for row in rows)


def test_prefect_shows_the_decision_with_its_reasons_and_pictures(finished: Path) -> None:
    [(data, headline)] = in_prefect(
        finished, "select data, description from artifact where key = 'summary' order by created limit 1"
    )
    text = json.loads(data)
    assert headline == f"{MODEL}: version 1 is now champion"
    metrics = json.loads((finished / "reports/metrics.json").read_text())
    assert text.startswith(f"# {headline}\n\nTest mIoU **{metrics['mean_iou']:.3f}**")
    assert "| passed | floor | test mIoU " in text
    assert text.count("![](data:image/") == 4
    columns = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [row[:2] for row in columns if row[0][2:] in STEPS] == [[f"| {step}", "ran"] for step in STEPS]


def test_runs_and_version_lead_back_to_the_flow_run(finished: Path) -> None:
    [(flow_run,)] = in_prefect(finished, "select id from flow_run order by created limit 1")
    client = mlflow(finished)
    assert sorted(one.info.run_name for one in runs(client, MODEL)[:4]) == sorted(STEPS)
    parent = the_run(client, MODEL, "pipeline")
    version = client.get_model_version(MODEL, "1")
    for tags in (parent.data.tags, version.tags):
        assert tags["prefect.flow_run"] == flow_run
        assert "prefect.flow_run_page" not in tags  # nobody answers there any more
        assert "pspnet.overrides" not in tags


def test_a_second_time_nothing_runs_and_nothing_is_registered(finished: Path) -> None:
    def known() -> list[str]:
        return sorted(
            one.info.run_id for one in client.search_runs([e.experiment_id for e in client.search_experiments()])
        )

    client = mlflow(finished)
    before = known()
    said = retrain(finished)
    assert "Running stage" not in said
    assert said.endswith(f"{MODEL}: version 1 is the champion already\n")
    assert known() == before
    assert len(client.search_model_versions(f"name = '{MODEL}'")) == 1
    assert {row[""] for row in table(finished, "created desc")} == {"unchanged"}


class TestMistakes:
    """Told once, at once, and nothing has been started."""

    def told(self, folder: Path, *options: str) -> str:
        flow_runs = in_prefect(folder, "select count(*) from flow_run")
        before = standing(folder)
        said = retrain(folder, *options, status=1)
        assert "Traceback" not in said
        assert in_prefect(folder, "select count(*) from flow_run") == flow_runs
        assert standing(folder) == before
        return said

    def test_in_params(self, finished: Path) -> None:
        params = finished / "params.yaml"
        text = params.read_text()
        write_params(finished, finetune__learning_rate=-1, pretrain__epochs="many")
        said = self.told(finished)
        params.write_text(text)
        assert said == (
            "2 problems:\n"
            "  params.yaml: pretrain.epochs is 'many' (text); expected a whole number\n"
            "  params.yaml: finetune.learning_rate is -1; expected greater than 0\n"
        )

    def test_in_a_dirty_tree_an_override_would_not_see_the_changes(self, finished: Path) -> None:
        losses = finished / "pspnet/losses/terms.py"
        text = losses.read_text()
        losses.write_text(f"{text}# new\n")
        said = self.told(finished, "--set", "finetune.learning_rate=0.01")
        losses.write_text(text)
        assert said.startswith(
            "git: has changes that are not committed: pspnet/losses/terms.py. An override runs in a worktree"
        )

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("finetune.lerning_rate=0.01", "did you mean 'finetune.learning_rate'?"),
            ("finetune.learning_rate", "--set: is 'finetune.learning_rate'; expected KEY=VALUE"),
            ("finetune.learning_rate=[", "--set: is not valid YAML"),
        ],
        ids=["name", "no-value", "no-yaml"],
    )  # fmt: skip
    def test_in_an_override(self, finished: Path, change: str, message: str) -> None:
        said = self.told(finished, "--set", change)
        assert said.count(message) == 1

    def test_in_dvc_yaml(self, finished: Path) -> None:
        pipeline = finished / "dvc.yaml"
        text = pipeline.read_text()
        pipeline.write_text(text.replace("retries: 2", "retries: often", 1))
        said = retrain(finished, status=1)
        pipeline.write_text(text)
        assert "dvc.yaml: stages.prepare.meta.retries: is 'often'; expected a whole number, 0 or more" in said
        assert "Traceback" not in said
        assert "Running stage" not in said


def test_an_override_runs_in_a_worktree_and_the_checkout_stays_as_it_is(finished: Path) -> None:
    before = standing(finished)
    said = retrain(finished, "--set", "finetune.learning_rate=1e-2", "--set", "evaluate.pictures=2")
    assert ran(said) == ["finetune", "evaluate"]
    assert standing(finished) == before
    assert run(finished, "git", "status", "--porcelain").split() == ["??", "data/raw.dvc", "??", "dvc.lock"]
    [tree] = [path for path in (finished / ".pspnet/runs").iterdir() if (path / "dvc.lock").exists()]
    assert (
        read_yaml(tree / "dvc.lock")["stages"]["finetune"]["params"]["params.yaml"]["finetune"]["learning_rate"] == 0.01
    )
    client = mlflow(finished)
    version = client.get_model_version(MODEL, "2")
    assert json.loads(version.tags["pspnet.overrides"]) == {"finetune.learning_rate": 0.01, "evaluate.pictures": 2}
    [(flow_run,)] = in_prefect(finished, "select id from flow_run order by created desc limit 1")
    assert version.tags["prefect.flow_run"] == flow_run
    assert left(finished) == []
