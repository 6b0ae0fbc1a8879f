"""Git worktrees for a different commit or different params, with the checkout's DVC cache and remotes."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import filelock

from pspnet.errors import Problem, UserError
from pspnet.machine import terminal

# If a git hook calls us, it has set these variables for a folder other than the worktree.
GIT_HOOK_VARIABLES = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_PREFIX",
    "GIT_COMMON_DIR",
    "GIT_OBJECT_DIRECTORY",
)
RWLOCK = Path(".dvc/tmp/rwlock")
RWLOCK_SECONDS = 10
DVC_LOCK = "dvc.lock"
WRITES_SECONDS = 1.0  # much longer than DVC takes to write dvc.lock
# This runs `python -m MODULE` so that it ends when its parent ends. Its children import the package from their own
# folder.
TETHERED = """
import runpy, signal, sys
ours, module = sys.argv.pop(1), sys.argv.pop(1)
sys.path.insert(0, ours)
from pspnet.machine.credentials import hide_in_output
from pspnet.machine.process import die_with_parent
sys.path.remove(ours)
hide_in_output()
die_with_parent(signal.SIGTERM)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def add(checkout: Path, tree: Path, commit: str) -> Path:
    """Create a worktree, and return the folder in it that contains dvc.yaml."""
    discard(checkout, tree)
    # `--force` twice, because git still lists a locked worktree after an attempt is killed.
    added = git(checkout, "worktree", "add", "--quiet", "--force", "--force", "--detach", str(tree), commit)
    if added.returncode:
        raise UserError(Problem(str(tree), f"cannot become a git worktree ({last_error_line(added)})"))
    project = tree / git(checkout, "rev-parse", "--show-prefix").stdout.strip()
    _share_dvc(checkout, project)
    return project


def discard(checkout: Path, tree: Path) -> None:
    if tree.exists():
        shutil.rmtree(tree)
    # Do not use `git worktree prune`, which would drop the user's worktrees on disks that are not mounted.
    git(checkout, "worktree", "remove", "--force", "--force", str(tree))


def _share_dvc(checkout: Path, project: Path) -> None:
    """Give the worktree the checkout's current cache and remotes, not the ones from the commit."""
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
            local["core"]["autostage"] = "true"  # otherwise DVC would suggest `git add` in the worktree
            for level in ("repo", "local"):
                for name, remote in settings.read(level)["remote"].items():  # relative paths become absolute
                    paths = {option: str(value) for option, value in remote.items() if Path(str(value)).is_absolute()}
                    local["remote"].setdefault(name, {}).update(paths)
    except DvcException as error:
        raise UserError(Problem("DVC", " ".join(str(error).split()).rstrip("."))) from None


def mend(project: Path) -> None:
    """Repair files that a killed DVC left truncated; every later DVC command would fail on them."""
    _mend_rwlock(project)
    _mend_dvc_lock(project)


def _mend_dvc_lock(project: Path) -> None:
    """Move a truncated dvc.lock aside. DVC finds the results of all stages in its run-cache."""
    lock = project / DVC_LOCK
    if not lock.exists() or _is_whole(content := lock.read_bytes()):
        return
    time.sleep(WRITES_SECONDS)
    if lock.read_bytes() != content:  # another process is writing it
        return
    kept = project / ".dvc/tmp" / DVC_LOCK
    lock.replace(kept)
    note = f"{lock} was truncated when DVC was killed; moved to {kept}. DVC finds the results in its cache."
    terminal.err.print(note, markup=False)


def _is_whole(content: bytes) -> bool:
    """Return whether DVC accepts the content, or a person needs to resolve a merge conflict in it."""
    import yaml
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    if any(line.startswith(b"<<<<<<< ") for line in content.splitlines()):  # a merge conflict
        return True
    try:
        COMPILED_LOCKFILE_SCHEMA(yaml.load(content, yaml.CSafeLoader))  # ten times as fast as the Python loader
    except (yaml.YAMLError, Invalid):
        return False
    return True


def _mend_rwlock(project: Path) -> None:
    lock = project / RWLOCK
    if not lock.exists():
        return
    with filelock.FileLock(f"{lock}.lock", timeout=RWLOCK_SECONDS):  # DVC holds this lock while it writes
        try:
            json.loads(lock.read_text(encoding="utf-8"))
        except ValueError:
            lock.unlink()
            terminal.err.print(f"{lock} was truncated when DVC was killed; removed.", markup=False)


def git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["git", "-c", "core.hooksPath=/dev/null", *arguments]  # the hook of `dvc install` checks out all data
    try:
        return subprocess.run(
            command, cwd=folder, env=without_hook(os.environ), capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise UserError(Problem("git", "is not installed", fix="Install git.")) from None


def last_error_line(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]


def without_hook(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in GIT_HOOK_VARIABLES}


def dvc_command(*arguments: str) -> list[str]:
    return tethered("dvc", *arguments)


def tethered(module: str, *arguments: str) -> list[str]:
    ours = str(Path(__file__).parents[2])
    return [sys.executable, "-P", "-c", TETHERED, ours, module, *arguments]


def environment(project: Path) -> dict[str, str]:
    """Return environment variables that make commands run the worktree's code with our installed packages."""
    kept = without_hook(os.environ)
    first = {"PATH": str(Path(sys.executable).parent), "PYTHONPATH": str(project)}
    return kept | {name: os.pathsep.join(filter(None, [path, kept.get(name)])) for name, path in first.items()}
