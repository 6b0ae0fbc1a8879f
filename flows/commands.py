"""A command as a process whose lines are read while it runs, and of which nothing is left when it is over."""

import os
import queue
import re
import subprocess
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import psutil

from pspnet.credentials import hidden
from pspnet.process import end_all

MARK = "PSPNET_COMMAND"  # in the environment of the command and of all that it starts, whoever their parent is by then
# of DVC, on what a person could type next; with --quiet it would hide its errors, too
ADVICE = re.compile(r"To track the changes with git|\tgit add |To enable auto staging|\tdvc config core|Use `dvc push`")
LAST_LINES = 200
LOOK_SECONDS = 0.5
DRAIN_SECONDS = 2.0
STOP_SECONDS = 60.0  # a training saves its checkpoint first


@dataclass(frozen=True)
class Ended:
    status: int
    seconds: float
    timed_out: bool
    output: str  # its last lines


def run(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    tell: Callable[[str], object],
    timeout_seconds: float | None = None,
) -> Ended:
    """In our process group, so that whoever ends this ends the command too."""
    started = time.monotonic()
    mark = uuid.uuid4().hex
    kept: deque[str] = deque(maxlen=LAST_LINES)
    timed_out = False
    with _ended_with_all(mark, command, folder, environment) as process:
        for line in _lines(process):
            if line:
                kept.append(line)
                tell(line)
            late = timeout_seconds is not None and time.monotonic() - started > timeout_seconds
            if late and process.poll() is None:
                timed_out = True
                break
    return Ended(process.returncode, time.monotonic() - started, timed_out, "\n".join(kept))


@contextmanager
def _ended_with_all(
    mark: str, command: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> Iterator[psutil.Popen]:
    # Of psutil, since what waits for many processes at once would keep the exit status from subprocess.Popen.
    process = psutil.Popen(
        command, cwd=folder, env={**environment, MARK: mark}, text=True, errors="replace",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield process
    finally:
        try:
            _end(process, mark, STOP_SECONDS)
        except BaseException:  # a second Ctrl-C: nothing is waited for
            _end(process, mark, 0)
            raise


def _end(process: psutil.Popen, mark: str, seconds: float) -> None:
    if process.poll() is None:
        others = {*process.children(recursive=True), *marked(MARK, mark)} - {process}
        end_all([process, *others], seconds)
        process.wait()
    # What it has left behind, and what that has started meanwhile. Twice: who is being started shows no environment.
    while left := marked(MARK, mark) or marked(MARK, mark):
        end_all(left, min(seconds, DRAIN_SECONDS))


def _lines(process: psutil.Popen) -> Iterator[str]:
    """Its lines as they come, and an empty one now and then, until it is over.

    It may go on when it has closed its end of the pipe, and what it leaves behind may keep that open and talk on.
    """
    said: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        with process.stdout as stream:
            for line in stream:
                said.put(hidden(line.rstrip()))
        said.put(None)

    Thread(target=read, daemon=True).start()
    over_since: float | None = None
    while over_since is None or time.monotonic() - over_since < DRAIN_SECONDS:
        try:
            line = said.get(timeout=LOOK_SECONDS)
        except queue.Empty:
            line = ""
        if line is None:
            break
        yield line
        if over_since is None and process.poll() is not None:
            over_since = time.monotonic()
    yield from filter(None, [said.get() for _ in range(said.qsize())])
    while process.poll() is None:
        with suppress(psutil.TimeoutExpired):
            process.wait(LOOK_SECONDS)
        yield ""


def without_advice(tell: Callable[[str], object]) -> Callable[[str], object]:
    return lambda line: None if ADVICE.match(line) else tell(line)


def marked(name: str, value: str) -> list[psutil.Process]:
    """Every other living process of this machine that has this in its environment."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.pid != os.getpid() and process.environ().get(name) == value
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
