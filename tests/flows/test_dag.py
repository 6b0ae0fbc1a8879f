import json
import shutil
import subprocess
from pathlib import Path

import pytest
from dvc.repo import Repo

from flows.dag import Source, Stage, changed_stages, read_dag
from pspnet.config.params import load_params
from pspnet.errors import UserError
from tests.e2e.pipeline import checkout, run
from tests.flows.repository import dvc
from tests.parameters import ROOT

# DVC uses pygtrie in a deprecated way.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")

MADE_UP = """
stages:
  last:
    cmd: cat middle raw/a > last
    deps: [middle, raw/a, code.py]
    outs: [last]
    meta: {timeout: 90m}
  middle:
    cmd: cat kept > middle
    deps: [kept]
    outs: [middle]
    meta: {pool: gpu, timeout: 2d, retries: 3, parts: sizes.parts}
"""


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made-up")
    run(folder, "git", "init", "--quiet")
    Repo.init(str(folder)).close()
    (folder / ".gitignore").write_text("/raw/\n")
    (folder / "code.py").touch()
    (folder / "params.yaml").write_text("sizes: {parts: 4, name: large}")
    (folder / "kept").write_text("k")
    with dvc(folder) as repo:
        repo.add("kept")
    (folder / "raw").mkdir()
    (folder / "raw/a").write_text("a")
    (folder / "dvc.yaml").write_text(MADE_UP)
    return folder


@pytest.fixture
def project(made_up: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made_up, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)  # like a flow does, because DVC's stage names are relative to the working folder
    return tmp_path


def test_our_dag_has_the_stages_of_dvc_and_the_raw_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dag = read_dag(checkout(tmp_path, prepare__parts=3))
    with dvc(ROOT) as repo:  # as `dvc stage list` does
        listed = [stage.addressing for stage in repo.stage.collect(None) if stage.cmd]
    assert [stage.name for stage in dag.stages] == listed
    assert dag.sources == (Source("data/raw"),)
    assert dag.has_remote
    hours = 3600
    assert dag.named("prepare").parts == load_params(tmp_path / "params.yaml").prepare.parts == 3
    assert [(stage.name, stage.pool, stage.timeout_seconds, stage.retries, stage.upstream) for stage in dag.stages] == [
        ("prepare", "cpu", 6 * hours, 2, ("data/raw",)),
        ("pretrain", "gpu", 24 * hours, 2, ("prepare",)),
        ("finetune", "gpu", 24 * hours, 2, ("prepare", "pretrain")),
        ("evaluate", "gpu", 2 * hours, 2, ("finetune", "prepare", "pretrain")),
    ]


def test_a_made_up_dag_is_read_as_written(project: Path) -> None:
    dag = read_dag(project)
    assert dag.stages == (
        Stage("middle", "gpu", 2 * 86400, 3, ("kept",), "cat kept > middle", 4),
        Stage("last", None, 90 * 60, 0, ("middle", "raw/a"), "cat middle raw/a > last", 1),
    )
    # If git ignores a dependency and no stage creates it, it counts as data, even before `dvc add`. Git tracks code.py.
    assert set(dag.sources) == {Source("kept"), Source("raw/a")}
    assert not dag.has_remote
    assert dag.sources_of(dag.named("last")) == [Source("raw/a")]
    with pytest.raises(UserError, match="there is no 'first'; expected one of middle, last"):
        dag.named("first")


def test_missing_raw_data_is_a_source_too(project: Path) -> None:
    (project / "raw/a").unlink()
    (project / "raw").rmdir()
    assert Source("raw/a") in read_dag(project).sources


def test_imports_are_recognized(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other") / "images"
    other.write_text("i")
    with dvc(project) as repo:
        repo.imp_url(str(other), "images")
    assert Source("images", is_import=True) in read_dag(project).sources


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: [", "YAML file structure is corrupted"),
        ("stages: {a: {cmd: x, depps: [y]}}", "validation failed"),
        ("stages: {a: {cmd: 'x ${nothing}'}}", "Could not find 'nothing'"),
        ("stages: {a: {cmd: x, deps: [b], outs: [a]}, b: {cmd: x, deps: [a], outs: [b]}}", "in stages: (a, b|b, a)"),
        ("stages: {a: {cmd: x, outs: [o]}, b: {cmd: x, outs: [o]}}", "output 'o' is specified in: - [ab] - [ab]"),
    ],
    ids=["no-yaml", "unknown-key", "no-value", "circle", "two-makers"],
)
def test_mistakes_in_dvc_yaml_are_user_errors(project: Path, text: str, message: str) -> None:
    (project / "dvc.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_dag(project)


def test_all_mistakes_in_meta_are_reported_at_once(project: Path) -> None:
    metas = {
        "a": {"timeout": "6 hours", "retries": -1, "parts": "sizes.prats"},
        "b": {"gpu": 1, "retries": "two", "parts": "sizes.name"},
        "c": {"timeout": 60},
        "d": {"parts": 3},
    }
    stages = {name: {"cmd": "x", "meta": meta} for name, meta in metas.items()}
    stages["e"] = {"cmd": ["x", "y"], "meta": {"parts": "sizes.parts"}}
    (project / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    with pytest.raises(UserError) as caught:
        read_dag(project)
    a_number = "the name of a whole number in params.yaml, 1 or more"
    assert [str(problem) for problem in caught.value.problems] == [
        "dvc.yaml: stages.a.meta.timeout: is '6 hours'; expected a number with s, m, h or d, such as 6h",
        "dvc.yaml: stages.a.meta.retries: is '-1'; expected a whole number, 0 or more",
        f"dvc.yaml: stages.a.meta.parts: is 'sizes.prats', which is no parameter; expected {a_number}",
        "dvc.yaml: stages.b.meta: has an unknown key 'gpu'; expected pool, timeout, retries, parts",
        "dvc.yaml: stages.b.meta.retries: is 'two'; expected a whole number, 0 or more",
        f"dvc.yaml: stages.b.meta.parts: is 'sizes.name', which is large; expected {a_number}",
        "dvc.yaml: stages.c.meta.timeout: is '60'; expected a number with s, m, h or d, such as 6h",
        f"dvc.yaml: stages.d.meta.parts: is '3', which is no parameter; expected {a_number}",
        "dvc.yaml: stages.e.meta.parts: is for one command; expected one in stages.e.cmd",
    ]


def test_changed_stages_are_those_that_are_not_up_to_date(project: Path) -> None:
    assert {"middle", "last"} <= changed_stages(project)
    (project / "middle").write_text("k")
    (project / "last").write_text("ka")
    with dvc(project) as repo:
        repo.commit(force=True)  # writes dvc.lock like `dvc repro`, without running anything
    assert changed_stages(project) == set()
    (project / "raw/a").write_text("another")
    assert changed_stages(project) == {"last"}
    (project / "last").unlink()
    (project / "raw/a").write_text("a")
    assert changed_stages(project) == {"last"}


def test_a_project_can_be_a_subfolder_of_its_repository(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sub = project / "sub"
    sub.mkdir()
    (sub / "raw").write_text("r")
    (sub / ".gitignore").write_text("/raw\n")
    Repo.init(str(sub), subdir=True).close()
    (sub / "dvc.yaml").write_text("stages: {a: {cmd: cp raw out, deps: [raw], outs: [out]}}")
    assert subprocess.run(["git", "check-ignore", "raw"], cwd=sub, capture_output=True, check=False).returncode == 0
    monkeypatch.chdir(sub)
    dag = read_dag(sub)
    assert (dag.sources, [stage.upstream for stage in dag.stages]) == ((Source("raw"),), [("raw",)])
