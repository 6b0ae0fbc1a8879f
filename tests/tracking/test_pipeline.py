import subprocess
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pspnet.errors import UserError
from pspnet.tracking.pipeline import circumstances, pipeline_key, pipeline_params, pipeline_run
from tests.parameters import demo_params
from tests.raw.rawdata import write
from tests.tracking.runs import the_run

STAGES = """
stages:
  prepare:
    params: [dataset, prepare]
    deps: [data/raw]
  finetune:
    params: [finetune, runtime]
    deps: [data/prepared]
"""


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "dvc.yaml", STAGES)
    write(tmp_path / "data/raw.dvc", "outs: [{md5: abc.dir, path: raw}]")
    return tmp_path


def test_the_same_params_data_and_code_make_the_same_pipeline(checkout: Path) -> None:
    key = pipeline_key(demo_params())
    assert pipeline_key(demo_params()) == key
    assert pipeline_key(demo_params(finetune__optimizer__learning_rate=0.5)) != key
    assert pipeline_key(demo_params(registry__model="another")) == key  # no stage reads this parameter
    write(checkout / "data/raw.dvc", "outs: [{md5: abd.dir, path: raw}]")
    other_data = pipeline_key(demo_params())
    write(checkout / "dvc.yaml", STAGES + "    frozen: true\n")
    assert len({key, other_data, pipeline_key(demo_params())}) == 3


def test_pipeline_params_are_those_that_stages_read() -> None:
    params = pipeline_params(demo_params())
    assert params["finetune.optimizer.learning_rate"] == "0.004"
    assert {name.partition(".")[0] for name in params} == {"dataset", "prepare", "finetune", "runtime"}


def test_a_flow_can_name_its_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSPNET_PIPELINE", "flow-run-7")
    assert pipeline_key(demo_params()) == "flow-run-7"
    monkeypatch.setenv("PSPNET_PIPELINE", "it's")
    with pytest.raises(UserError, match=r"PSPNET_PIPELINE: is 'it's'; expected letters"):
        pipeline_key(demo_params())


def test_a_run_names_its_commit_and_host(checkout: Path) -> None:
    assert "mlflow.source.git.commit" not in circumstances()

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    git("add", "dvc.yaml")
    git("commit", "--quiet", "--message", "start")
    write(checkout / "dvc.lock", "written by DVC while the pipeline runs")
    tags = circumstances()
    assert tags["mlflow.source.git.commit"] == git("rev-parse", "HEAD")
    assert tags["mlflow.source.git.dirty"] == "false"
    assert tags["pspnet.host"]
    write(checkout / "dvc.yaml", STAGES + "# changed")
    assert circumstances()["mlflow.source.git.dirty"] == "true"


def test_a_pipeline_run_is_created_once(client: MlflowClient, state: Path) -> None:
    params = demo_params(registry__model="pipeline-once")
    key = pipeline_key(params)
    first = pipeline_run(client, state, params, key)
    assert pipeline_run(client, state, params, key) == first
    run = the_run(client, "pipeline-once", "pipeline")
    assert run.data.params == pipeline_params(params)
    assert run.data.tags["pspnet.pipeline"] == key
    client.delete_run(first)
    assert pipeline_run(client, state, params, key) != first
