"""The `pspnet` command: called in this process, as fast as a function, or as a process where that is tested."""

import os
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from pspnet.cli import main


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


PSPNET = str(Path(sys.executable).with_name("pspnet"))
SETTINGS = {"COLUMNS": "200", "PSPNET_TRACKING": "off"}


def pspnet(*arguments: str | Path, cwd: Path, **environment: str) -> Done:
    """What the command printed, and its exit status; an exception that leaves it is a traceback, as in a process."""
    stdout, stderr = StringIO(), StringIO()
    with (
        _as_a_process_of_its_own(cwd, SETTINGS | environment, arguments),
        redirect_stdout(stdout),
        redirect_stderr(stderr),
    ):
        status = _status()
    return Done(status, stdout.getvalue(), stderr.getvalue())


def pspnet_process(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The same as a process of its own: for signals, exit statuses, what is printed around the command."""
    return subprocess.run(
        [PSPNET, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | SETTINGS | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def _status() -> int:
    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except Exception:
        traceback.print_exc()
        return 1
    return 0


@contextmanager
def _as_a_process_of_its_own(cwd: Path, settings: dict[str, str], arguments: tuple[str | Path, ...]) -> Iterator[None]:
    environment, folder, words = dict(os.environ), Path.cwd(), sys.argv
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")  # pytest makes errors of them; what a command loads may warn
            os.environ.update(settings)
            os.chdir(cwd)
            sys.argv = ["pspnet", *map(str, arguments)]
            yield
    finally:
        sys.argv = words
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
