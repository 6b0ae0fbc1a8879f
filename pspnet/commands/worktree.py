"""A checkout as it was when a version was registered: a git worktree beside ours, and DVC in it."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil

from pspnet.errors import EXIT_CTRL_C, EXIT_TEMPORARY, Interrupted, Problem, UserError
from pspnet.registry.provenance import DIFF, KEPT, data_files

STOP_SECONDS = 60  # a training saves its checkpoint first
# A git hook that calls us sets these, for another folder than the worktree.
OF_A_HOOK = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY")
# `python -m dvc` that ends with the process that has started it. The stages find the worktree's package, DVC starts
# with ours.
TETHERED_DVC = """
import runpy, signal, sys
ours = sys.argv.pop(1)
sys.path.insert(0, ours)
from pspnet.process import die_with_parent
sys.path.remove(ours)
die_with_parent(signal.SIGTERM)
runpy.run_module("dvc", run_name="__main__", alter_sys=True)
"""


def lay_out(tree: Path, commit: str, kept: Path) -> Path:
    """The checkout as it was; returns the folder of dvc.yaml in it."""
    discard(tree)
    # --force twice: of an attempt that was killed git remembers a locked worktree.
    added = git("worktree", "add", "--quiet", "--force", "--force", "--detach", str(tree), commit)
    if added.returncode:
        raise UserError(Problem(str(tree), f"cannot be made a git worktree ({_last(added)})"))
    project = tree / git("rev-parse", "--show-prefix").stdout.strip()
    if (kept / DIFF).exists():
        applied = git("apply", "--binary", "--whitespace=nowarn", str((kept / DIFF).resolve()), folder=tree)
        if applied.returncode:
            problem = f"does not apply to the commit {commit} ({_last(applied)})"
            raise UserError(Problem(str(kept / DIFF), problem, "the changes as they were registered"))
    data = data_files(kept)
    for path in (*map(Path, KEPT), *data):
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).unlink(missing_ok=True)
        if (kept / path).exists():
            shutil.copyfile(kept / path, project / path)
    _share_dvc(project)
    return project


def _share_dvc(project: Path) -> None:
    """Where the data are is a matter of today, and of this checkout: its cache and its remotes."""
    root = Path(_asked("root"))
    there = project / root / ".dvc"
    there.mkdir(exist_ok=True)
    for name in ("config", "config.local"):
        if (root / ".dvc" / name).exists():
            shutil.copy(root / ".dvc" / name, there / name)
    # DVC shows as absolute what a file says relative to itself. autostage: no advice to `git add` in the worktree.
    settings = {"cache.dir": _asked("cache", "dir"), "core.autostage": "true"}
    for level in ("--project", "--local"):
        for line in _asked("config", "--list", level).splitlines():
            name, _, value = line.partition("=")
            if name.startswith("remote.") and Path(value).is_absolute():
                settings[name] = value
    for name, value in settings.items():
        _asked("config", "--local", name, value, folder=project)


def discard(tree: Path) -> None:
    if tree.exists():
        shutil.rmtree(tree)
    # Not `git worktree prune`: it would forget a person's worktrees on a disk that is not mounted.
    git("worktree", "remove", "--force", "--force", str(tree))


def git(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in OF_A_HOOK}
    command = ["git", "-c", "core.hooksPath=/dev/null", *arguments]  # `dvc install` has a hook that checks out all data
    try:
        return subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError(Problem("git", "is not installed", fix="Install git.")) from None


def dvc(project: Path, *arguments: str, quiet: bool = False) -> int:
    """Its exit status; what it says goes to the terminal."""
    ours = str(Path(__file__).parents[2])
    command = [sys.executable, "-P", "-c", TETHERED_DVC, ours, *arguments]
    silence = subprocess.DEVNULL if quiet else None
    process = subprocess.Popen(command, cwd=project, env=_environment(project), stdout=silence, stderr=silence)
    try:
        return process.wait()
    except BaseException:
        _end(process)
        raise


def _end(process: subprocess.Popen[bytes]) -> None:
    """DVC and its stage; a Ctrl-C in the terminal has reached both already."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    process.terminate()
    _, left = psutil.wait_procs(family, STOP_SECONDS)
    for one in left:
        one.kill()
    process.wait()


def _environment(project: Path) -> dict[str, str]:
    """The version's own code with our packages; no run in MLflow, no finished checkpoint to restore."""
    kept = {name: value for name, value in os.environ.items() if name not in {*OF_A_HOOK, "PSPNET_PIPELINE"}}
    first = {"PATH": str(Path(sys.executable).parent), "PYTHONPATH": str(project)}
    paths = {name: os.pathsep.join(filter(None, [path, kept.get(name)])) for name, path in first.items()}
    return {**kept, **paths, "PSPNET_TRACKING": "off", "PSPNET_STATE": str(project / ".pspnet")}


def _asked(*arguments: str, folder: Path | None = None) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(Problem(f"dvc {' '.join(arguments[:2])}", _last(done)))
    return done.stdout.strip()


def _last(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]


@contextmanager
def stoppable() -> Iterator[None]:
    def stop(number: int, _: FrameType | None) -> NoReturn:
        status = EXIT_CTRL_C if number == signal.SIGINT else EXIT_TEMPORARY
        raise Interrupted(status, "Stopped. The checkout was not touched; the same command starts over.")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
