"""The checkout as it was when a version was registered, in a worktree, and DVC at work in it."""

import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from pspnet.errors import EXIT_CTRL_C, EXIT_TEMPORARY, Interrupted, Problem, UserError
from pspnet.process import end_all, family, on_stop_request
from pspnet.registry.provenance import DIFF, KEPT, data_files
from pspnet.worktree import add, dvc_command, environment, git, last

HERE = Path()


def lay_out(tree: Path, commit: str, kept: Path) -> Path:
    """Returns the folder of dvc.yaml in it."""
    project = add(HERE, tree, commit)
    if (kept / DIFF).exists():
        applied = git(tree, "apply", "--binary", "--whitespace=nowarn", str((kept / DIFF).resolve()))
        if applied.returncode:
            problem = f"does not apply to the commit {commit} ({last(applied)})"
            raise UserError(Problem(str(kept / DIFF), problem, "the changes as they were registered"))
    for path in (*map(Path, KEPT), *data_files(kept)):
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).unlink(missing_ok=True)
        if (kept / path).exists():
            shutil.copyfile(kept / path, project / path)
    return project


def dvc(project: Path, *arguments: str, quiet: bool = False) -> int:
    """Its exit status; what it says goes to the terminal. No run in MLflow, no finished checkpoint to restore."""
    own = environment(project) | {"PSPNET_TRACKING": "off", "PSPNET_STATE": str(project / ".pspnet")}
    own.pop("PSPNET_PIPELINE", None)
    silence = subprocess.DEVNULL if quiet else None
    process = subprocess.Popen(dvc_command(*arguments), cwd=project, env=own, stdout=silence, stderr=silence)
    try:
        return process.wait()
    except BaseException:  # a Ctrl-C in the terminal has reached DVC and its stage already
        end_all(family(process.pid))
        process.wait()
        raise


@contextmanager
def stoppable() -> Iterator[None]:
    def stop(number: int, _: FrameType | None) -> NoReturn:
        status = EXIT_CTRL_C if number == signal.SIGINT else EXIT_TEMPORARY
        raise Interrupted(status, "Stopped. The checkout was not touched; the same command starts over.")

    with on_stop_request(stop):
        yield
