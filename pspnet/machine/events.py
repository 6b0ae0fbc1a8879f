"""The event log: what a command reports to the process that started it, as one JSON object per line.

Each attempt has its own log. A flow creates the log and passes its path in PSPNET_EVENTS. It reads progress while the
command runs, and afterwards the results and why the command ended. If a stage is tracked, its journal refers to the
same log, and the sender reads the stage's records there. Printed text is for people, and no program reads it.

Each line has a `kind` and a time in milliseconds. Readers skip lines of an unknown kind.
"""

import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pspnet.machine.credentials import hidden
from pspnet.machine.process import rank, ranks

VARIABLE = "PSPNET_EVENTS"  # environment variable with the path of this attempt's log
FOLDER = "events"  # in the state folder, where a journal may refer to the log long after the attempt

Event = dict[str, Any]


def log() -> Path | None:
    """Return the path of the log that this process was asked to write, if any."""
    name = os.environ.get(VARIABLE)
    return Path(name) if name else None


def new_log(state: Path) -> Path:
    """Create the log for an attempt."""
    path = state.resolve() / FOLDER / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
    return path


@contextmanager
def some_log(state: Path) -> Iterator[Path]:
    """Yield the log that this process was asked to write or, if there is none, a new log for processes started in the
    block.
    """
    if path := log():
        yield path
        return
    path = new_log(state)
    os.environ[VARIABLE] = str(path)
    try:
        yield path
    finally:
        del os.environ[VARIABLE]
        discard(path)


def discard(path: Path) -> None:
    """Remove a log that has been read, unless a journal needs it."""
    if not any(event["kind"] == "begin" for event, _ in read(path)):
        path.unlink(missing_ok=True)


def tell(kind: str, **content: Any) -> None:
    """Write an event if a log was requested. A full disk is not an error here, because the work itself will report
    it.
    """
    if path := log():
        own = {"rank": rank()} if ranks() > 1 else {}
        with suppress(OSError):
            append(path, event(kind, **own, **content))


def event(kind: str, **content: Any) -> Event:
    return {"kind": kind, "time": time.time_ns() // 1_000_000, **content}


def append(path: Path, event: Event) -> None:
    """Append the event in one write, so that processes never mix their lines. First, end a line that was cut off by a
    kill.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        torn = size and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, b"\n" * bool(torn) + hidden(json.dumps(event)).encode() + b"\n")
    finally:
        os.close(descriptor)


def read(path: Path, offset: int = 0) -> list[tuple[Event, int]]:
    """Return the events in the complete lines from `offset` on, each with its end offset. Invalid lines are skipped."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            lines = file.readlines()
    except FileNotFoundError:
        return []
    events = []
    for line in lines:
        offset += len(line)
        if line.endswith(b"\n") and (found := _parsed(line)):
            events.append((found, offset))
    return events


def _parsed(line: bytes) -> Event | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "kind" in found and "time" in found else None
