"""A command as a process whose lines are read while it runs, and of which nothing is left when it is over."""

import os
import queue
import subprocess
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import psutil

from pspnet.process import end_all

MARK = "PSPNET_COMMAND"  # in the environment of the command and of all that it starts, whoever their parent is by then
LAST_LINES = 200
LOOK_SECONDS = 0.5
DRAIN_SECONDS = 2.0


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
    with _ended_with_all(mark, command, folder, environment) as process:
        lines = _lines(process)
        timed_out = False
        for line in lines:
            if line is not None:
                kept.append(line)
                tell(line)
            elif timeout_seconds and time.monotonic() - started > timeout_seconds:
                timed_out = True
                break
    return Ended(process.returncode, time.monotonic() - started, timed_out, "\n".join(kept))


@contextmanager
def _ended_with_all(
    mark: str, command: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command, cwd=folder, env={**environment, MARK: mark}, text=True, errors="replace",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            end_all([psutil.Process(process.pid), *marked(MARK, mark)])
        while left := marked(MARK, mark):  # what it has left behind, and what that has started meanwhile
            end_all(left, seconds=DRAIN_SECONDS)
        process.wait()


def _lines(process: subprocess.Popen[str]) -> Iterator[str | None]:
    """Its lines as they come, and None now and then. A process it leaves behind may keep the other end open."""
    assert process.stdout
    said: queue.Queue[str | None] = queue.Queue()

    def read(stream: Iterator[str]) -> None:
        for line in stream:
            said.put(line.rstrip())
        said.put(None)

    Thread(target=read, args=(process.stdout,), daemon=True).start()
    over_since: float | None = None
    while True:
        try:
            line = said.get(timeout=LOOK_SECONDS)
        except queue.Empty:
            yield None
        else:
            if line is None:
                process.wait()
                return
            if line:
                yield line
            continue
        if process.poll() is not None:
            over_since = over_since or time.monotonic()
            if time.monotonic() - over_since > DRAIN_SECONDS:
                return


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
