"""A worktree with the checkout as it was when a version was registered. DVC can run in it."""

import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from pspnet.errors import EXIT_CTRL_C, EXIT_TEMPORARY, Interrupted, Problem, UserError
from pspnet.machine.process import end_all, family, on_stop_request
from pspnet.machine.worktree import add, dvc_command, environment, git, last_error_line
from pspnet.registry.provenance import DIFF, KEPT, data_files

HERE = Path()


def lay_out(tree: Path, commit: str, kept: Path) -> Path:
    """Create the worktree and return the folder in it that contains dvc.yaml."""
    project = add(HERE, tree, commit)
    if (kept / DIFF).exists():
        applied = git(tree, "apply", "--binary", "--whitespace=nowarn", str((kept / DIFF).resolve()))
        if applied.returncode:
            problem = f"cannot be applied to the commit {commit} ({last_error_line(applied)})"
            raise UserError(Problem(str(kept / DIFF), problem, "the changes as registered"))
    for path in (*map(Path, KEPT), *data_files(kept)):
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).unlink(missing_ok=True)
        if (kept / path).exists():
            shutil.copyfile(kept / path, project / path)
    return project


def dvc(project: Path, *arguments: str, quiet: bool = False) -> int:
    """Run DVC in the project and return its exit status. The stages neither log runs nor find old checkpoints."""
    own = environment(project) | {"PSPNET_TRACKING": "off", "PSPNET_STATE": str(project / ".pspnet")}
    own.pop("PSPNET_PIPELINE", None)
    silence = subprocess.DEVNULL if quiet else None
    process = subprocess.Popen(dvc_command(*arguments), cwd=project, env=own, stdout=silence, stderr=silence)
    try:
        return process.wait()
    except BaseException:  # a Ctrl-C in the terminal has already reached DVC and its stage
        end_all(family(process.pid))
        process.wait()
        raise


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise `Interrupted` if asked to stop."""

    def stop(number: int, _: FrameType | None) -> NoReturn:
        status = EXIT_CTRL_C if number == signal.SIGINT else EXIT_TEMPORARY
        raise Interrupted(status, "Stopped. The checkout is unchanged; run the same command to start over.")

    with on_stop_request(stop):
        yield
