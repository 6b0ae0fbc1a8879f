"""Tests that a retraining run which would change nothing is recognized, and that after any change the flow runs."""

import contextlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import pytest
import yaml
from dvc.repo import Repo

from flows.laptop.nothing_to_do import nothing_to_do
from flows.workplace import Workplace
from pspnet.errors import Busy, UserError

# DVC uses pygtrie in a deprecated way.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")

HEADLINE = "the registry's answer"
PIPELINE = """
stages:
  first:
    cmd: cat data/raw/*/* > prepared
    deps: [data/raw, code.py]
    params: [size]
    outs: [prepared]
  second:
    cmd: mkdir models && wc prepared > models/weights
    deps: [prepared]
    outs: [models]
"""

CONFIG = """
[core]
    remote = folder
    analytics = false
['remote "folder"']
    url = ../../remote
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline that has run without starting a process. Its results are in a remote next to it."""
    folder = tmp_path_factory.mktemp("finished") / "project"
    for name, content in {
        ".gitignore": "/data/raw/\n/.pspnet/\n", "dvc.yaml": PIPELINE, "params.yaml": "size: 1\n", "code.py": "pass\n",
        "data/raw/images/a": "an image\n", "data/raw/masks/a": "a mask\n",
        "prepared": "an image\na mask\n", "models/weights": "2 4 16 prepared\n",
    }.items():  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    Repo.init(str(folder)).close()
    (folder / ".dvc/config").write_text(CONFIG)
    with contextlib.chdir(folder), Repo() as repo:
        repo.add("data/raw")
        repo.commit(force=True)
        repo.push(run_cache=True)
    assert (folder.parent / "remote/runs").exists()
    return folder


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(finished.parent, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("PSPNET_STATE", raising=False)
    return tmp_path / "project"


@contextlib.contextmanager
def registry(workplace: Workplace) -> Iterator[Callable[[], str | None]]:
    yield lambda: HEADLINE


def answering(answer: Callable[[], str | None]) -> Callable[[Workplace], contextlib.AbstractContextManager[Any]]:
    return lambda workplace: contextlib.nullcontext(answer)


def test_the_registry_is_queried_if_nothing_changed(project: Path) -> None:
    lock = (project / "dvc.lock").read_bytes()
    assert nothing_to_do(registry) == HEADLINE
    assert nothing_to_do(answering(lambda: None)) is None
    assert (project / "dvc.lock").read_bytes() == lock
    [data] = yaml.safe_load((project / "data/raw.dvc").read_text())["outs"]
    assert json.loads((project / ".pspnet/taken.json").read_text())["data/raw"]["content"] == data["md5"]


def changed_image(project: Path) -> None:
    (project / "data/raw/images/a").write_text("another image\n")


def new_file(project: Path) -> None:
    (project / "data/raw/images/b").write_text("an image\n")


def file_gone(project: Path) -> None:
    (project / "data/raw/masks/a").unlink()


def no_data_file(project: Path) -> None:
    (project / "data/raw.dvc").unlink()


def changed_params(project: Path) -> None:
    (project / "params.yaml").write_text("size: 2\n")


def changed_code(project: Path) -> None:
    (project / "code.py").write_text("raise\n")


def changed_command(project: Path) -> None:
    (project / "dvc.yaml").write_text(PIPELINE.replace("wc prepared", "wc -l prepared"))


def new_stage(project: Path) -> None:
    (project / "dvc.yaml").write_text(f"{PIPELINE}  third: {{cmd: touch third, deps: [models], outs: [third]}}\n")


def mistake_in_meta(project: Path) -> None:
    (project / "dvc.yaml").write_text(f"{PIPELINE}    meta: {{retries: often}}\n")


def changed_result(project: Path) -> None:
    (project / "models/weights").write_text("others")


def result_gone(project: Path) -> None:
    (project / "models/weights").unlink()


def another_lock(project: Path) -> None:
    content = yaml.safe_load((project / "dvc.lock").read_text())
    content["stages"]["first"]["outs"][0]["md5"] = "0" * 32
    (project / "dvc.lock").write_text(yaml.safe_dump(content))


def without_lock(project: Path) -> None:
    (project / "dvc.lock").unlink()


def cache_of(place: Path, content: str) -> Path:
    [path] = [path for path in place.rglob("*") if path.is_file() and path.read_bytes() == content.encode()]
    return path


def result_not_in_cache(project: Path) -> None:
    cache_of(project / ".dvc/cache", "2 4 16 prepared\n").unlink()


def data_not_in_cache(project: Path) -> None:
    cache_of(project / ".dvc/cache", "a mask\n").unlink()


def result_not_in_remote(project: Path) -> None:
    cache_of(project.parent / "remote", "an image\na mask\n").unlink()


def folder_not_in_remote(project: Path) -> None:
    """Remove a folder's file list from the remote. Once DVC has seen a complete folder, even `dvc push` overlooks a
    missing file in that folder.
    """
    content = yaml.safe_load((project / "dvc.lock").read_text())["stages"]["second"]["outs"][0]["md5"]
    next((project.parent / "remote").rglob(f"{content[2:]}")).unlink()


def another_remote(project: Path) -> None:
    with Repo(str(project)) as repo, repo.config.edit("local") as config:
        config["remote"] = {"folder": {"url": str(project.parent / "empty")}}


def run_cache_not_in_remote(project: Path) -> None:
    next(path for path in (project.parent / "remote/runs").rglob("*") if path.is_file()).unlink()


def import_of_data(project: Path) -> None:
    """Turn the raw data into an import. The origin of an import may have changed."""
    path = project / "data/raw.dvc"
    content = yaml.safe_load(path.read_text())
    content["deps"] = [{"path": "../../raw", "hash": "md5", "md5": content["outs"][0]["md5"]}]
    path.write_text(yaml.safe_dump({**content, "frozen": True}))


def data_known_to_git(project: Path) -> None:
    (project / ".gitignore").write_text("/.pspnet/\n")
    (project / "data/.gitignore").unlink(missing_ok=True)


@pytest.mark.parametrize(
    "change",
    [
        changed_image, new_file, file_gone, no_data_file, changed_params, changed_code, changed_command, new_stage,
        mistake_in_meta, changed_result, result_gone, another_lock, without_lock, result_not_in_cache,
        data_not_in_cache, result_not_in_remote, folder_not_in_remote, another_remote, run_cache_not_in_remote,
        import_of_data, data_known_to_git,
    ],
)  # fmt: skip
def test_any_change_runs_the_flow(project: Path, change: Callable[[Path], None]) -> None:
    change(project)
    assert nothing_to_do(registry) is None
    assert not (project / ".pspnet/taken.json").exists()


def test_without_a_remote_nothing_needs_to_be_pushed(project: Path) -> None:
    with Repo(str(project)) as repo, repo.config.edit("repo") as config:
        del config["core"]["remote"]
    assert nothing_to_do(registry) == HEADLINE


def test_an_output_with_its_own_remote_runs_the_flow(project: Path) -> None:
    another = PIPELINE.replace("outs: [prepared]", "outs: [{prepared: {remote: folder}}]")
    (project / "dvc.yaml").write_text(another)
    assert nothing_to_do(registry) is None


def test_a_configured_server_always_gets_a_flow_run(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert nothing_to_do(registry) is None


def test_the_flow_waits_for_another_run(project: Path) -> None:
    (project / ".pspnet").mkdir()
    with filelock.FileLock(project / ".pspnet/retrain.lock", is_singleton=False):
        assert nothing_to_do(registry) is None
    assert nothing_to_do(registry) == HEADLINE


def test_no_run_starts_while_the_registry_is_being_queried(project: Path) -> None:
    def begins() -> str:
        with pytest.raises(filelock.Timeout):
            filelock.FileLock(project / ".pspnet/retrain.lock", timeout=0).acquire()
        return HEADLINE

    assert nothing_to_do(answering(begins)) == HEADLINE


@pytest.mark.parametrize("error", [Busy("the database"), UserError([], "a mistake"), ConnectionError("away")])
def test_a_registry_error_runs_the_flow(project: Path, error: Exception) -> None:
    def fails() -> str:
        raise error

    assert nothing_to_do(answering(fails)) is None


def test_a_worktree_always_runs_the_flow(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (["add", "--all"], ["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "start"]):
        subprocess.run(["git", *words], cwd=project, check=True)
    tree = project / ".pspnet/runs/one"
    subprocess.run(["git", "worktree", "add", "--quiet", str(tree)], cwd=project, check=True)
    monkeypatch.chdir(tree)
    assert nothing_to_do(registry) is None
