"""What a stage has to tell MLflow: one JSON object to a line, in the order it happened.

A line has its time in milliseconds. MLflow keeps a metric under (name, time, step, value): sent twice it is one row.
"""

import json
import os
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pspnet.credentials import hidden

JOURNAL = "journal.jsonl"
KILLED = {"status": "KILLED", "message": "The process was killed."}  # what it could not tell itself

Entry = dict[str, Any]


class Journal:
    """Opened for another attempt at the same work; what earlier attempts have told is not told again."""

    def __init__(self, folder: Path, **about: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._path = folder / JOURNAL
        _drop_torn_line(self._path)
        entries = [entry for entry, _ in read(self._path)]
        if not entries or entries[0]["kind"] != "journal":  # killed in its very first line
            self._path.unlink(missing_ok=True)
            entries = []
        self._known = {identity(entry) for entry in entries}
        attempts = [entry["attempt"] for entry in entries if entry["kind"] == "begin"]
        self.attempt = max(attempts, default=0) + 1
        self.id: str = entries[0]["id"] if entries else uuid.uuid4().hex
        if not entries:
            self.add("journal", id=self.id, **about)
        if attempts and not ended(entries, self.attempt - 1):
            self.add("end", attempt=self.attempt - 1, **KILLED)

    def add(self, kind: str, **content: Any) -> bool:
        """Whether it was new."""
        entry = {"kind": kind, "time": time.time_ns() // 1_000_000, **content}
        if identity(entry) in self._known:
            return False
        append(self._path, entry)
        self._known.add(identity(entry))
        return True


def ended(entries: Iterable[Entry], attempt: int) -> bool:
    return any(entry["kind"] == "end" and entry["attempt"] == attempt for entry in entries)


def identity(entry: Entry) -> str:
    """Equal for two entries that tell the same: an epoch is its step, all else what it says, whenever that was."""
    if entry["kind"] == "epoch":
        return f"epoch {entry['step']}"
    return json.dumps({key: value for key, value in entry.items() if key != "time"}, sort_keys=True)


def append(path: Path, entry: Entry) -> None:
    """In one write, so that two processes never mix their lines."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, hidden(json.dumps(entry)).encode() + b"\n")
    finally:
        os.close(descriptor)


def read(path: Path, offset: int = 0) -> list[tuple[Entry, int]]:
    """The whole lines from `offset` on, each with the offset behind it. What is no entry is left out."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            lines = file.readlines()
    except FileNotFoundError:
        return []
    entries = []
    for line in lines:
        offset += len(line)
        if line.endswith(b"\n") and (entry := _parsed(line)):
            entries.append((entry, offset))
    return entries


def _parsed(line: bytes) -> Entry | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and "kind" in entry and "time" in entry else None


def _drop_torn_line(path: Path) -> None:
    if path.exists() and not (content := path.read_bytes()).endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)
