"""`pspnet accept` in a real DVC repository with one small stage. The tests are marked e2e, because the command starts
DVC.
"""

import getpass
import hashlib
import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from dvc.repo import Repo

from tests.command import Done, call, pspnet
from tests.raw.rawdata import write
from tests.repository import dvc, new_repository

DVC_YAML = """\
stages:
  finetune:
    cmd: echo ran >> runs.log && echo weights > net.txt
    params: [finetune]
    deps: [images.txt, pspnet/x.py]
    outs: [net.txt]
  evaluate:
    cmd: echo good > report.txt
    deps: [net.txt]
    outs: [report.txt]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which `finetune` has run once and `evaluate` has never run."""
    folder = tmp_path_factory.mktemp("made") / "repository"
    write(folder / "dvc.yaml", DVC_YAML)
    write(folder / "params.yaml", "finetune: {epochs: 1}\n")
    write(folder / "images.txt", "images")
    write(folder / "pspnet/x.py", "x = 1\n")
    write(folder / "runs.log", "ran\n")
    write(folder / "net.txt", "weights\n")
    new_repository(folder)
    dvc("commit", "--quiet", "--force", "finetune", cwd=folder)
    return folder


@pytest.fixture
def repository(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "repository")
    return tmp_path / "repository"


def changed_stages(repository: Path) -> set[str]:
    found: set[str] = set()
    assert call(lambda: found.update(Repo().status()), repository).returncode == 0
    return found


def accept(repository: Path, stage: str = "finetune", why: str = "a comment") -> Done:
    return pspnet("accept", stage, "--why", why, cwd=repository)


@pytest.mark.e2e
def test_a_result_is_kept_and_recorded_after_a_comment_changes(repository: Path) -> None:
    write(repository / "pspnet/x.py", "x = 1  # one\n")
    write(repository / "accepted.jsonl", '{"stage": "an earlier one"}\n')
    result = repository / "net.txt"
    before = result.read_bytes()
    done = accept(repository, why="only a comment")
    assert done.stdout == (
        "finetune: results kept although pspnet/x.py changed; recorded in accepted.jsonl.\n"
        "Commit it together with dvc.lock.\n"
    )
    assert (done.stderr, done.returncode) == ("", 0)
    assert result.read_bytes() == before
    assert changed_stages(repository) == {"evaluate"}
    earlier, entry = map(json.loads, (repository / "accepted.jsonl").read_text().splitlines())
    assert earlier == {"stage": "an earlier one"}
    assert datetime.now(UTC) - datetime.fromisoformat(entry.pop("when")) < timedelta(minutes=1)
    assert entry == {
        "stage": "finetune",
        "who": getpass.getuser(),
        "why": "only a comment",
        "changed": ["pspnet/x.py"],
        "results": {"net.txt": hashlib.md5(before).hexdigest()},
    }
    assert (repository / "runs.log").read_text() == "ran\n"


def rewrite(name: str, text: str) -> Callable[[Path], object]:
    return lambda repository: write(repository / name, text)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("change", "what"),
    [
        pytest.param(rewrite("params.yaml", "finetune: {epochs: 2}\n"), "params.yaml", id="params"),
        pytest.param(rewrite("images.txt", "other images"), "images.txt", id="data"),
        pytest.param(rewrite("net.txt", "made by hand"), "net.txt", id="result"),
        pytest.param(rewrite("dvc.yaml", DVC_YAML.replace("weights", "more")), "the command", id="command"),
    ],
)
def test_a_change_of_the_result_is_not_accepted(repository: Path, change: Callable[[Path], object], what: str) -> None:
    write(repository / "pspnet/x.py", "x = 1  # one\n")
    change(repository)
    before = (repository / "dvc.lock").read_bytes()
    done = accept(repository)
    assert done.stderr == (
        f"finetune: more than its code has changed: {what}. Run `dvc repro finetune`: this changes the result.\n"
    )
    assert (done.stdout, done.returncode) == ("", 1)
    assert (repository / "dvc.lock").read_bytes() == before
    assert not (repository / "accepted.jsonl").exists()


@pytest.mark.parametrize(
    ("stage", "status", "message"),
    [
        pytest.param(
            "finetune", 0, "finetune: nothing has changed, so there is nothing to accept.", marks=pytest.mark.e2e
        ),
        ("finetun", 1, "dvc.yaml: has no stage 'finetun'; expected finetune, evaluate"),
        ("evaluate", 1, "dvc.lock: has no results for 'evaluate'. Run `dvc repro evaluate` first."),
    ],
)
def test_nothing_changes_if_there_is_nothing_to_accept(repository: Path, stage: str, status: int, message: str) -> None:
    before = (repository / "dvc.lock").read_bytes()
    done = accept(repository, stage)
    assert done.stdout + done.stderr == message + "\n"
    assert done.returncode == status
    assert (repository / "dvc.lock").read_bytes() == before
    assert not (repository / "accepted.jsonl").exists()


def test_outside_a_project_the_message_names_the_missing_file(tmp_path: Path) -> None:
    done = accept(tmp_path)
    assert (done.stderr, done.returncode) == ("dvc.yaml: is missing. Run this in your checkout.\n", 1)
