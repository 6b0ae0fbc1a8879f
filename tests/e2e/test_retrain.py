"""`pspnet retrain` on one machine, without any service."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from pspnet.config.reading import read_yaml
from tests.command import pspnet
from tests.e2e.pipeline import STEPS, commit, digests, environment, import_weights, in_prefect, ran, run, write_params
from tests.flows.processes import left
from tests.tracking.runs import runs, the_run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
MODEL = "pspnet-demo"


def retrain(folder: Path, *options: str, status: int = 0, tracking: str = "off") -> str:
    done = subprocess.run(
        ["pspnet", "retrain", *options], cwd=folder, text=True, timeout=600, check=False,
        env=environment(folder) | {"COLUMNS": "200", "PSPNET_TRACKING": tracking},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == status, done.stdout
    return done.stdout


def mlflow(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder}/.pspnet/mlflow.db")


def table(folder: Path, order: str) -> list[dict[str, Any]]:
    """Return the rows of the stage table, which Prefect stores as text in JSON."""
    [(data,)] = in_prefect(folder, f"select data from artifact where key = 'stages' order by {order} limit 1")
    rows: list[dict[str, Any]] = json.loads(json.loads(data))
    return rows


def standing(folder: Path) -> dict[str, bytes]:
    """Return the files that a run in a worktree must not touch."""
    names = ("params.yaml", "dvc.lock", "data/raw.dvc", "models/segmenter/model.json", "reports/metrics.json")
    return {name: (folder / name).read_bytes() for name in names}


def test_retrain_runs_every_stage_and_leaves_no_process(retrained: Path) -> None:
    said = (retrained / ".pspnet/retrain.log").read_text()
    assert ran(said) == list(STEPS)
    assert said.endswith(f"{MODEL}: version 1 is now champion\n")


def test_retrain_gives_the_same_results_as_dvc(retrained: Path, finished: Path) -> None:
    assert digests(retrained) == digests(finished)
    assert len(digests(retrained)) == 8


def test_the_results_are_in_the_remote(retrained: Path) -> None:
    assert json.loads(run(retrained, "dvc", "data", "status", "--not-in-remote", "--json")).get("not_in_remote") is None


def test_prefect_shows_a_task_for_each_step(retrained: Path) -> None:
    tasks = in_prefect(retrained, "select name, state_name, run_count from task_run order by start_time")
    around = ["data/raw", *STEPS, "register", "push"]
    assert tasks[: len(around)] == [(name, "Completed", 1) for name in around]


def test_prefect_shows_how_the_stages_ended(retrained: Path) -> None:
    rows = table(retrained, "created")
    assert [(row["stage"], row[""], row["where"]) for row in rows] == [(step, "ran", "here") for step in STEPS]
    assert all(row["seconds"] > 0 for row in rows)


def test_prefect_shows_the_decision_with_its_reasons_and_pictures(retrained: Path) -> None:
    [(data, headline)] = in_prefect(
        retrained, "select data, description from artifact where key = 'summary' order by created limit 1"
    )
    text = json.loads(data)
    assert headline == f"{MODEL}: version 1 is now champion"
    metrics = json.loads((retrained / "reports/metrics.json").read_text())
    assert text.startswith(f"# {headline}\n\nTest mIoU **{metrics['mean_iou']:.3f}**")
    assert "| passed | floor | test mIoU " in text
    assert text.count("![](data:image/") == 1
    columns = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [row[:2] for row in columns if row[0][2:] in STEPS] == [[f"| {step}", "ran"] for step in STEPS]


def test_runs_and_version_link_to_the_flow_run(retrained: Path) -> None:
    [(flow_run,)] = in_prefect(retrained, "select id from flow_run order by created limit 1")
    client = mlflow(retrained)
    assert sorted(one.info.run_name for one in runs(client, MODEL)[:4]) == sorted(STEPS)
    parent = the_run(client, MODEL, "pipeline")
    version = client.get_model_version(MODEL, "1")
    for tags in (parent.data.tags, version.tags):
        assert tags["prefect.flow_run"] == flow_run
        assert "prefect.flow_run_page" not in tags  # the page's server stopped with the run
        assert "pspnet.overrides" not in tags


@pytest.mark.usefixtures("warm")
def test_a_second_retraining_runs_nothing_and_registers_nothing(retrained: Path) -> None:
    def known() -> list[str]:
        return sorted(
            one.info.run_id for one in client.search_runs([e.experiment_id for e in client.search_experiments()])
        )

    client = mlflow(retrained)
    before = known()
    flow_runs = in_prefect(retrained, "select count(*) from flow_run")
    said = retrain(retrained, tracking="on")
    assert "Running stage" not in said
    assert said.endswith(f"{MODEL}: version 1 is already the champion\n")
    assert known() == before
    assert len(client.search_model_versions(f"name = '{MODEL}'")) == 1
    if in_prefect(retrained, "select count(*) from flow_run") != flow_runs:
        assert {row[""] for row in table(retrained, "created desc")} == {"unchanged"}


class TestMistakes:
    """Mistakes are reported once, before anything is started."""

    def told(self, folder: Path, *options: str) -> str:
        flow_runs = in_prefect(folder, "select count(*) from flow_run")
        before = standing(folder)
        done = pspnet("retrain", *options, cwd=folder)
        said = done.stdout + done.stderr
        assert done.returncode == 1
        assert "Traceback" not in said
        assert in_prefect(folder, "select count(*) from flow_run") == flow_runs
        assert standing(folder) == before
        return said

    def test_in_params(self, retrained: Path) -> None:
        write_params(retrained, finetune__optimizer__learning_rate=-1, pretrain__epochs="many")
        assert self.told(retrained) == (
            "2 problems:\n"
            "  params.yaml: pretrain.epochs is 'many' (text); expected a whole number\n"
            "  params.yaml: finetune.optimizer.learning_rate is -1; expected greater than 0\n"
        )

    def test_in_git_uncommitted_changes_rule_out_an_override(self, retrained: Path) -> None:
        with (retrained / "pspnet/losses/terms.py").open("a") as file:
            file.write("# new\n")
        said = self.told(retrained, "--set", "finetune.optimizer.learning_rate=0.01")
        assert said.startswith("git: has uncommitted changes: pspnet/losses/terms.py. With --set, the run uses a")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("finetune.lerning_rate=0.01", "did you mean 'finetune.optimizer.learning_rate'?"),
            ("finetune.optimizer.learning_rate", "--set: is 'finetune.optimizer.learning_rate'; expected KEY=VALUE"),
            ("finetune.optimizer.learning_rate=[", "--set: is not valid YAML"),
        ],
        ids=["name", "no-value", "no-yaml"],
    )  # fmt: skip
    def test_in_an_override(self, retrained: Path, change: str, message: str) -> None:
        said = self.told(retrained, "--set", change)
        assert said.count(message) == 1

    @pytest.mark.usefixtures("warm")
    def test_in_dvc_yaml(self, retrained: Path) -> None:
        pipeline = retrained / "dvc.yaml"
        pipeline.write_text(pipeline.read_text().replace("retries: 2", "retries: often", 1))
        said = retrain(retrained, status=1)
        assert "dvc.yaml: stages.prepare.meta.retries: is 'often'; expected a whole number, 0 or more" in said
        assert "Traceback" not in said
        assert ran(said) == []


@pytest.mark.usefixtures("warm")
def test_an_override_runs_in_a_worktree_and_leaves_the_checkout_untouched(retrained: Path) -> None:
    """Imported weights are available in the worktree too."""
    import_weights(retrained, seed=1)
    commit(retrained, "data/weights")
    before = standing(retrained)
    changes = ("backbone.weights=imported", "finetune.optimizer.learning_rate=1e-2", "evaluate.pictures=2")
    said = retrain(retrained, *(word for change in changes for word in ("--set", change)))
    assert ran(said) == ["pretrain", "finetune", "evaluate"]
    assert "data/weights/imported" in said
    assert said.endswith(f"{MODEL}: version 2 is now champion\n")
    assert standing(retrained) == before
    assert run(retrained, "git", "status", "--porcelain").split() == ["??", "data/raw.dvc", "??", "dvc.lock"]
    [tree] = [path for path in (retrained / ".pspnet/runs").iterdir() if (path / "dvc.lock").exists()]
    stages = read_yaml(tree / "dvc.lock")["stages"]
    assert stages["finetune"]["params"]["params.yaml"]["finetune"]["optimizer"]["learning_rate"] == 0.01
    backbone = stages["pretrain"]["params"]["params.yaml"]["backbone"]
    assert backbone["weights"] == "imported"
    client = mlflow(retrained)
    version = client.get_model_version(MODEL, "2")
    assert json.loads(version.tags["pspnet.overrides"]) == {
        "backbone.weights": "imported",
        "finetune.optimizer.learning_rate": 0.01,
        "evaluate.pictures": 2,
    }
    [(flow_run,)] = in_prefect(retrained, "select id from flow_run order by created desc limit 1")
    assert version.tags["prefect.flow_run"] == flow_run
    assert left(retrained) == []
