"""Runs the `pspnet` command, either in this process, as fast as a function call, or in a separate one."""

import logging
import os
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from pspnet.cli import main


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


PSPNET = str(Path(sys.executable).with_name("pspnet"))
SETTINGS = {"COLUMNS": "200", "PSPNET_TRACKING": "off"}


def pspnet(*arguments: str | Path, cwd: Path, **environment: str) -> Done:
    """Call the command. Returns its output and exit status. An exception becomes a traceback, as in a real process."""
    return call(main, cwd, ("pspnet", *map(str, arguments)), SETTINGS | environment)


def pspnet_process(*arguments: str | Path, cwd: Path, program: str = PSPNET, **environment: str) -> Done:
    """Run the command as a separate process, to test signals, exit statuses and all of its output."""
    done = subprocess.run(
        [program, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | SETTINGS | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def call(
    function: Callable[[], object],
    cwd: Path,
    argv: tuple[str, ...] = ("called",),
    environment: dict[str, str] | None = None,
) -> Done:
    """Call `function` as if in a separate process, and restore everything that it changes."""
    with _processes_state(), _torchs_state(), _logging_state(), _stdout.captured(), _stderr.captured():
        os.environ.update(environment or {})
        os.chdir(cwd)
        sys.argv = list(argv)
        status = _status(function)
        return Done(status, _stdout.read(), _stderr.read())


def _status(function: Callable[[], object]) -> int:
    try:
        function()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except Exception:
        traceback.print_exc()
        return 1
    return 0


class _Stream:
    """Standard output or error, including the output of child processes. All calls share one file, because a logging
    handler keeps the stream that existed when the handler's library was imported.
    """

    def __init__(self, name: str, number: int) -> None:
        self.name, self.number = name, number
        self.file = tempfile.TemporaryFile("a+", encoding="utf-8", buffering=1)  # noqa: SIM115

    @contextmanager
    def captured(self) -> Iterator[None]:
        self.file.seek(0)
        self.file.truncate()
        before = getattr(sys, self.name)
        before.flush()
        saved = os.dup(self.number)
        os.dup2(self.file.fileno(), self.number)
        setattr(sys, self.name, self.file)
        try:
            yield
        finally:
            self.file.flush()
            setattr(sys, self.name, before)
            os.dup2(saved, self.number)
            os.close(saved)

    def read(self) -> str:
        self.file.flush()
        self.file.seek(0)
        return self.file.read()


_stdout, _stderr = _Stream("stdout", 1), _Stream("stderr", 2)


@contextmanager
def _processes_state() -> Iterator[None]:
    environment, folder, words = dict(os.environ), Path.cwd(), sys.argv
    try:
        with warnings.catch_warnings():  # pytest turns warnings into errors; a real process does not
            warnings.simplefilter("default")
            for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        sys.argv = words
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)


@contextmanager
def _torchs_state() -> Iterator[None]:
    """Restore the seed and everything that `pspnet.model.device.configure` sets."""
    threads, cudnn = torch.get_num_threads(), torch.backends.cudnn
    benchmark, allow_tf32 = cudnn.benchmark, cudnn.allow_tf32
    deterministic = _determinism()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
        cudnn.benchmark, cudnn.allow_tf32 = benchmark, allow_tf32
        if _determinism() != deterministic:  # setting it loads torch's compiler, which takes seconds
            torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])


def _determinism() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


@contextmanager
def _logging_state() -> Iterator[None]:
    """Restore all loggers. Some libraries silence every other logger when they are set up."""
    known = logging.root.manager.loggerDict.values()
    loggers = [logging.root, *(logger for logger in known if isinstance(logger, logging.Logger))]
    before = [(logger, logger.level, logger.disabled) for logger in loggers]
    handlers = logging.root.handlers[:]
    try:
        yield
    finally:
        logging.root.handlers[:] = handlers
        for logger, level, disabled in before:
            logger.setLevel(level)
            logger.disabled = disabled
