"""A git worktree beside the checkout, and DVC in it: the checkout's cache and remotes, another commit, other params."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import filelock

from pspnet import terminal
from pspnet.errors import Problem, UserError

# A git hook that calls us sets these, for another folder than the worktree.
OF_A_HOOK = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY")
LOCKS = Path(".dvc/tmp/rwlock")
LOCKS_SECONDS = 10
RESULTS = "dvc.lock"
WRITES_SECONDS = 1.0  # much longer than DVC takes to write it
# `python -m MODULE` that ends with the process that has started it. What it starts finds the package of its own folder.
TETHERED = """
import runpy, signal, sys
ours, module = sys.argv.pop(1), sys.argv.pop(1)
sys.path.insert(0, ours)
from pspnet.credentials import hide_in_output
from pspnet.process import die_with_parent
sys.path.remove(ours)
hide_in_output()
die_with_parent(signal.SIGTERM)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def add(checkout: Path, tree: Path, commit: str) -> Path:
    """A new worktree; returns the folder of dvc.yaml in it."""
    discard(checkout, tree)
    # --force twice: of an attempt that was killed git remembers a locked worktree.
    added = git(checkout, "worktree", "add", "--quiet", "--force", "--force", "--detach", str(tree), commit)
    if added.returncode:
        raise UserError(Problem(str(tree), f"cannot be made a git worktree ({last(added)})"))
    project = tree / git(checkout, "rev-parse", "--show-prefix").stdout.strip()
    _share_dvc(checkout, project)
    return project


def discard(checkout: Path, tree: Path) -> None:
    if tree.exists():
        shutil.rmtree(tree)
    # Not `git worktree prune`: it would forget a person's worktrees on a disk that is not mounted.
    git(checkout, "worktree", "remove", "--force", "--force", str(tree))


def _share_dvc(checkout: Path, project: Path) -> None:
    """Give the worktree the checkout's cache and remotes as they are today, whatever the commit says."""
    from dvc.config import Config
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        root = Path(Repo.find_root(str(checkout))).resolve()
        ours, there = root / ".dvc", project / os.path.relpath(root, checkout.resolve()) / ".dvc"
        there.mkdir(exist_ok=True)
        for name in ("config", "config.local"):
            if (ours / name).exists():
                shutil.copy(ours / name, there / name)
        settings = Config(str(ours))
        with Config(str(there)).edit("local") as local:
            local["cache"]["dir"] = str(settings["cache"].get("dir") or ours / "cache")
            local["core"]["autostage"] = "true"  # no advice to `git add` in the worktree
            for level in ("repo", "local"):
                for name, remote in settings.read(level)["remote"].items():  # paths absolute, also of relative ones
                    paths = {option: str(value) for option, value in remote.items() if Path(str(value)).is_absolute()}
                    local["remote"].setdefault(name, {}).update(paths)
    except DvcException as error:
        raise UserError(Problem("DVC", " ".join(str(error).split()).rstrip("."))) from None


def mend(project: Path) -> None:
    """DVC killed while it writes a file leaves it cut short, and every later command stumbles over it."""
    _mend_locks(project)
    _mend_results(project)


def _mend_results(project: Path) -> None:
    """dvc.lock, which DVC can do without: it finds the results of every stage in its cache of runs."""
    lock = project / RESULTS
    if not lock.exists() or _is_whole(content := lock.read_bytes()):
        return
    time.sleep(WRITES_SECONDS)
    if lock.read_bytes() != content:  # somebody is writing it
        return
    kept = project / ".dvc/tmp" / RESULTS
    lock.replace(kept)
    what = f"{lock} was cut short when DVC was killed, and is now {kept}. DVC finds the results in its cache."
    terminal.err.print(what, markup=False)


def _is_whole(content: bytes) -> bool:
    """Whether DVC will take it, or a person has to decide."""
    import yaml
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    if any(line.startswith(b"<<<<<<< ") for line in content.splitlines()):  # git has merged
        return True
    try:
        COMPILED_LOCKFILE_SCHEMA(yaml.load(content, yaml.CSafeLoader))  # ten times as fast as without C
    except (yaml.YAMLError, Invalid):
        return False
    return True


def _mend_locks(project: Path) -> None:
    lock = project / LOCKS
    if not lock.exists():
        return
    with filelock.FileLock(f"{lock}.lock", timeout=LOCKS_SECONDS):  # as DVC holds it while it writes
        try:
            json.loads(lock.read_text(encoding="utf-8"))
        except ValueError:
            lock.unlink()
            terminal.err.print(f"{lock} was cut short when DVC was killed, and is removed.", markup=False)


def git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["git", "-c", "core.hooksPath=/dev/null", *arguments]  # `dvc install` has a hook that checks out all data
    try:
        return subprocess.run(
            command, cwd=folder, env=without_hook(os.environ), capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise UserError(Problem("git", "is not installed", fix="Install git.")) from None


def last(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]


def without_hook(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in OF_A_HOOK}


def dvc_command(*arguments: str) -> list[str]:
    return tethered("dvc", *arguments)


def tethered(module: str, *arguments: str) -> list[str]:
    ours = str(Path(__file__).parents[1])
    return [sys.executable, "-P", "-c", TETHERED, ours, module, *arguments]


def environment(project: Path) -> dict[str, str]:
    """The worktree's own code with our packages."""
    kept = without_hook(os.environ)
    first = {"PATH": str(Path(sys.executable).parent), "PYTHONPATH": str(project)}
    return kept | {name: os.pathsep.join(filter(None, [path, kept.get(name)])) for name, path in first.items()}
