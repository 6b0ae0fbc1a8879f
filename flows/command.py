"""Runs a command and reads its output and events as they arrive. Leaves no process behind when the command exits."""

import os
import queue
import subprocess
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import psutil

from pspnet.machine import events
from pspnet.machine.credentials import hidden
from pspnet.machine.events import Event
from pspnet.machine.offline import STATE
from pspnet.machine.process import end_all

MARK = "PSPNET_COMMAND"  # environment variable that marks every process of the command, even after its parent has died
LAST_LINES = 200
POLL_SECONDS = 0.5
DRAIN_SECONDS = 2.0
STOP_SECONDS = 60.0  # time for a command to stop; training first saves a checkpoint


@dataclass(frozen=True)
class CommandResult:
    status: int
    seconds: float
    timed_out: bool
    output: str  # the last lines of the output
    events: list[Event] = field(default_factory=list)  # all events except progress

    def told(self, kind: str) -> list[Event]:
        return [event for event in self.events if event["kind"] == kind]

    @property
    def result(self) -> dict[str, Any]:
        """The result that the command reported, or an empty dict if it reported none."""
        return {name: value for event in self.told("result") for name, value in event.items()}

    @property
    def end(self) -> Event | None:
        """The command's exit event. None if the command was killed or is not one of ours."""
        return next((event for event in reversed(self.told("exit")) if "rank" not in event), None)


def run(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    on_line: Callable[[str], object],
    timeout_seconds: float | None = None,
    on_progress: Callable[[Event], object] = lambda event: None,
) -> CommandResult:
    """Run the command in our process group, so that a signal that ends this process also ends the command.

    The command gets a log to write events to.
    """
    log = events.new_log(folder / environment.get("PSPNET_STATE", STATE))
    try:
        return _run(command, folder, {**environment, events.VARIABLE: str(log)}, on_line, timeout_seconds, on_progress)
    finally:
        events.discard(log)


def _run(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    on_line: Callable[[str], object],
    timeout_seconds: float | None,
    on_progress: Callable[[Event], object],
) -> CommandResult:
    started = time.monotonic()
    mark = uuid.uuid4().hex
    kept: deque[str] = deque(maxlen=LAST_LINES)
    log = _LogReader(Path(environment[events.VARIABLE]), on_progress)
    timed_out = False
    with _ended_with_all(mark, command, folder, environment) as process:
        for line in _lines(process):
            log.read_now_and_then()
            if line:
                kept.append(line)
                on_line(line)
            late = timeout_seconds is not None and time.monotonic() - started > timeout_seconds
            if late and process.poll() is None:
                timed_out = True
                break
    log.read()
    return CommandResult(process.returncode, time.monotonic() - started, timed_out, "\n".join(kept), log.events)


class _LogReader:
    def __init__(self, path: Path, on_progress: Callable[[Event], object]) -> None:
        self.events: list[Event] = []
        self._path, self._on_progress = path, on_progress
        self._offset, self._read_at = 0, time.monotonic()

    def read_now_and_then(self) -> None:
        if time.monotonic() - self._read_at >= POLL_SECONDS:
            self.read()

    def read(self) -> None:
        for event, self._offset in events.read(self._path, self._offset):  # noqa: B020
            if event["kind"] == "progress":
                self._on_progress(event)
            else:
                self.events.append(event)
        self._read_at = time.monotonic()


@contextmanager
def _ended_with_all(
    mark: str, command: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> Iterator[psutil.Popen]:
    # psutil.Popen, because psutil.wait_procs would consume the exit status of a subprocess.Popen.
    process = psutil.Popen(
        command, cwd=folder, env={**environment, MARK: mark}, text=True, errors="replace",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield process
    finally:
        try:
            _end(process, mark, STOP_SECONDS)
        except BaseException:  # a second Ctrl-C: kill without waiting
            _end(process, mark, 0)
            raise


def _end(process: psutil.Popen, mark: str, seconds: float) -> None:
    if process.poll() is None:
        others = {*process.children(recursive=True), *marked(MARK, mark)} - {process}
        end_all([process, *others], seconds)
        process.wait()
    # End processes that were left behind, and any that these have started since. Look twice, because a process that is
    # just starting has no environment yet.
    while left := marked(MARK, mark) or marked(MARK, mark):
        end_all(left, min(seconds, DRAIN_SECONDS))


def _lines(process: psutil.Popen) -> Iterator[str]:
    """Yield lines of output as they arrive, with an empty line now and then, until the process exits.

    The process can close its end of the pipe before it exits, and processes it leaves behind can keep writing to it.
    """
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        with process.stdout as stream:
            for line in stream:
                lines.put(hidden(line.rstrip()))
        lines.put(None)

    Thread(target=read, daemon=True).start()
    ended_at: float | None = None
    while ended_at is None or time.monotonic() - ended_at < DRAIN_SECONDS:
        try:
            line = lines.get(timeout=POLL_SECONDS)
        except queue.Empty:
            line = ""
        if line is None:
            break
        yield line
        if ended_at is None and process.poll() is not None:
            ended_at = time.monotonic()
    yield from filter(None, [lines.get() for _ in range(lines.qsize())])
    while process.poll() is None:
        with suppress(psutil.TimeoutExpired):
            process.wait(POLL_SECONDS)
        yield ""


def marked(name: str, value: str) -> list[psutil.Process]:
    """All other live processes on this machine that have this variable in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.pid != os.getpid() and process.environ().get(name) == value
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
