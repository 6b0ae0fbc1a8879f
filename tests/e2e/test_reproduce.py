"""A version registered from a dirty tree is reproduced after the project has moved on."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest

from pspnet.config.reading import read_yaml
from tests.e2e.pipeline import BIN, STEPS, checkout, copied, environment, ran, reproduce, run, warmed, write_params
from tests.files import made_once
from tests.flows.processes import kill_all, left_of
from tests.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("warm"), pytest.mark.timeout(900)]
NETWORK = "pspnet/model/network.py"
NEW_MODULE = "pspnet/model/rectifier.py"
RECTIFIER = '''"""An activation that only this version has."""

from torch import nn


def rectifier() -> nn.Module:   
    return nn.LeakyReLU(0.2, inplace=True)
'''  # noqa: W291  `apply.whitespace = fix` would remove this trailing space
# Personal git settings that would break a diff that is created or applied carelessly.
SETTINGS = {
    "diff.noprefix": "true",
    "diff.context": "0",
    "color.ui": "always",
    "apply.whitespace": "fix",
    "user.name": "t",
    "user.email": "t@example.org",
}
HOOK = "#!/bin/sh\ntouch .git-hook-ran\nexit 1\n"
EQUAL = "was rebuilt ("


@pytest.fixture(scope="session")
def project_once(shared: Path, stand_ins: Path, finished_once: Path) -> Path:
    def make(folder: Path) -> None:
        folder.rmdir()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in warmed(stand_ins).items():
                patch.setenv(name, value)
            develop(copied(finished_once, folder))

    return made_once(shared / "e2e/project", make)


def develop(folder: Path) -> None:
    """Register version 1 with a changed network and a new module, neither of them committed, then add ten commits."""
    for name, value in SETTINGS.items():
        run(folder, "git", "config", name, value)
    hook = folder / ".git/hooks/post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(HOOK)
    hook.chmod(0o755)
    network, pipeline = (folder / NETWORK).read_text(), (folder / "dvc.yaml").read_text()
    (folder / NEW_MODULE).write_text(RECTIFIER)
    replace(folder / NETWORK, "nn.ReLU(inplace=True)", "rectifier()")
    replace(folder / NETWORK, "\n\n\n@", "\nfrom pspnet.model.rectifier import rectifier\n\n\n@")
    (folder / "dvc.yaml").write_text(pipeline.replace(f"- {NETWORK}\n", f"- {NETWORK}\n      - {NEW_MODULE}\n"))
    write_params(folder, finetune__dropout=0.3)
    # This run is tracked, so its records differ from those of an untracked run, no matter how fast both are.
    assert reproduce(folder, PSPNET_TRACKING="on") == ["finetune", "evaluate"]
    run(folder, "pspnet", "register", "models/segmenter")
    run(folder, "pspnet", "lineage", "1")  # this downloads the version's files

    (folder / NEW_MODULE).unlink()
    (folder / NETWORK).write_text(network.replace("nn.ReLU(inplace=True)", "nn.GELU()"))
    (folder / "dvc.yaml").write_text(pipeline)
    write_params(folder, finetune__dropout=0.1, finetune__optimizer__learning_rate=0.001, runtime__seed=7)
    next((folder / "data/raw/images").iterdir()).unlink()
    run(folder, "dvc", "add", "--quiet", "data/raw")
    for number in range(10):
        (folder / "notes.md").write_text(f"day {number}\n")
        run(folder, "git", "add", "--all")
        run(folder, "git", "commit", "--quiet", "--message", f"day {number}")
    append(folder / "pspnet/losses/terms.py", "# of today\n")
    run(folder, "git", "add", "pspnet/losses/terms.py")
    append(folder / "pspnet/metrics.py", "# of today, not staged\n")


@pytest.fixture
def project(project_once: Path, tmp_path: Path) -> Path:
    return copied(project_once, tmp_path / "project")


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def pspnet(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["pspnet", *arguments], cwd=folder, env=environment(folder) | {"COLUMNS": "200"},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


@contextmanager
def untouched(folder: Path) -> Iterator[None]:
    """Assert that the block changes neither the checkout's files nor its index, cache or MLflow runs."""
    before = standing(folder)
    yield
    assert standing(folder) == before


def standing(folder: Path) -> dict[str, object]:
    ignored = {".git", ".pspnet", "tmp", "__pycache__"}
    files = [path for path in folder.rglob("*") if path.is_file() and not ignored & {*path.relative_to(folder).parts}]
    assert folder / "params.yaml" in files
    return {
        "files": {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in files},
        "index": run(folder, "git", "ls-files", "--stage"),
        "status": run(folder, "git", "-c", "color.ui=false", "status", "--porcelain"),
        "head": run(folder, "git", "rev-parse", "HEAD"),
        "runs": runs(folder),
    }


def runs(folder: Path) -> list[str]:
    with closing(sqlite3.connect(folder / ".pspnet/mlflow.db")) as database:
        return [str(row[0]) for row in database.execute("select run_uuid from runs order by run_uuid")]


def kept(folder: Path) -> Path:
    (found,) = (folder / ".pspnet/versions").glob("*/model/artifacts/provenance")
    return found


def worktrees(folder: Path) -> list[Path]:
    lines = run(folder, "git", "worktree", "list", "--porcelain").splitlines()
    return [Path(line.removeprefix("worktree ")) for line in lines if line.startswith("worktree ")]


def worktree(folder: Path) -> Path:
    return folder / ".pspnet/reproduce/v1"


def test_a_version_from_a_dirty_tree_is_reproduced_ten_commits_later(project: Path) -> None:
    with untouched(project):
        done = pspnet(project, "reproduce", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert EQUAL in done.stdout
    assert "from DVC's cache" in done.stdout
    assert done.stdout.count("│ equal") == 10
    assert worktrees(project) == [project]


def test_a_version_is_reproduced_by_running_every_stage(project: Path) -> None:
    with untouched(project):
        done = pspnet(project, "reproduce", "1", "--run-again", "--keep")
        assert done.returncode == 0, done.stdout + done.stderr
        assert ran(done.stdout) == list(STEPS)
        assert "finetune and evaluate ran here" in done.stdout
        assert "rectifier()" in (worktree(project) / NETWORK).read_text()
        assert (worktree(project) / NEW_MODULE).read_text() == RECTIFIER
        assert not (worktree(project) / ".git-hook-ran").exists()
        trained = read_yaml(worktree(project) / "params.yaml")
        assert (trained["finetune"]["dropout"], trained["runtime"]["seed"]) == (0.3, 0)
        record = json.loads((worktree(project) / "reports/runs/finetune.json").read_text())
        assert record["run_id"] is None
        assert worktrees(project) == [project, worktree(project)]


def test_a_different_result_is_named_and_the_command_exits_with_1(project: Path) -> None:
    lock = kept(project) / "dvc.lock"
    text = lock.read_text()
    metrics = read_yaml(lock)["stages"]["evaluate"]["outs"][1]
    assert metrics["path"] == "reports/metrics.json"
    lock.write_text(text.replace(metrics["md5"], "f" * 32))
    done = pspnet(project, "reproduce", "1")
    assert done.returncode == 1
    assert [line.split("│")[0].strip() for line in done.stdout.splitlines() if "differs" in line] == [metrics["path"]]
    assert "evaluate produced different results from the same code, params and data" in done.stderr
    assert f"The new results are in {worktree(project)}" in done.stderr
    assert (worktree(project) / "models/segmenter/model.json").exists()


def test_params_that_the_results_were_not_made_with_are_named(project: Path) -> None:
    replace(kept(project) / "params.yaml", "pictures: 6", "pictures: 2")
    done = pspnet(project, "reproduce", "1")
    assert done.returncode == 1
    assert "It was registered after a change that `dvc repro` had not seen: evaluate: evaluate.pictures." in (
        done.stderr
    )


def test_ctrl_c_leaves_nothing_behind_and_the_command_works_again(project: Path) -> None:
    try:
        with untouched(project):
            stop_in_the_middle(project)
    finally:
        kill_all(project)
    done = pspnet(project, "reproduce", "1")
    assert done.returncode == 0, done.stdout + done.stderr


def stop_in_the_middle(project: Path) -> None:
    """Stop `pspnet reproduce` partway through. A worktree left by someone else is also in the way."""
    no_hook = ("-c", "core.hooksPath=/dev/null")
    run(project, "git", *no_hook, "worktree", "add", "--quiet", "--detach", str(worktree(project)), "HEAD~3")
    log = project / ".pspnet/stopped.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [BIN / "pspnet", "reproduce", "1", "--run-again"], cwd=project, env=environment(project), stdout=output,
            stderr=output, start_new_session=True,
        )  # fmt: skip

    def trains() -> bool:
        assert process.poll() is None, log.read_text()
        return any((worktree(project) / ".pspnet/checkpoints").glob("pretrain-*"))

    wait_until(trains, 300, log.read_text)
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(300) == 130
    assert left_of(family) == []
    assert "run the same command to start over" in log.read_text()
    assert worktrees(project) == [project]
    assert not worktree(project).exists()


def test_data_missing_from_cache_and_remote_is_reported(project: Path) -> None:
    raw = read_yaml(kept(project) / "data/raw.dvc")["outs"][0]["md5"]
    (project / ".dvc/cache/files/md5" / raw[:2] / raw[2:]).unlink()
    done = pspnet(project, "reproduce", "1")
    assert done.returncode == 1
    assert "data/raw: is neither in this checkout's DVC cache nor in its remote" in done.stderr


def test_changes_that_do_not_apply_are_reported(project: Path) -> None:
    diff = kept(project) / "changes.diff"
    content = diff.read_bytes()
    assert b"-            nn.ReLU(inplace=True)" in content
    diff.write_bytes(content.replace(b"nn.ReLU(inplace=True)", b"nn.Sigmoid()"))
    done = pspnet(project, "reproduce", "1")
    assert done.returncode == 1
    assert "changes.diff: cannot be applied to the commit" in done.stderr


def test_a_version_with_a_broken_record_is_refused_immediately(project: Path) -> None:
    append(kept(project).parent / "bundle/model.json", "\n")
    with closing(sqlite3.connect(project / ".pspnet/mlflow.db")) as database:
        database.execute("delete from model_version_tags where key = 'git.commit'")
        database.commit()
    done = pspnet(project, "reproduce", "1")
    assert done.returncode == 1
    assert "2 problems:" in done.stderr
    assert "contains the bundle" in done.stderr
    assert "has no git commit" in done.stderr
    assert not worktree(project).exists()


def test_a_clone_without_the_commit_is_told_to_fetch_it(project: Path, tmp_path: Path) -> None:
    other = checkout(tmp_path / "other")
    shutil.copytree(project / ".pspnet", other / ".pspnet")
    done = pspnet(other, "reproduce", "1")
    assert done.returncode == 1
    assert "which this clone lacks. `git fetch --all` gets it" in done.stderr
