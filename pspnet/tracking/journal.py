"""The journal: what a stage records for MLflow, one JSON object per line, in order.

Each line has its time in milliseconds. MLflow stores a metric by (name, time, step, value), so sending one twice makes
a single row.
"""

import json
import os
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pspnet.machine.credentials import hidden

JOURNAL = "journal.jsonl"
KILLED = {"status": "KILLED", "message": "The process was killed."}  # written on behalf of the killed process

Entry = dict[str, Any]


class Journal:
    """The journal, opened for a new attempt at the same work. Entries of earlier attempts are not written again."""

    def __init__(self, folder: Path, **about: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._path = folder / JOURNAL
        _drop_torn_line(self._path)
        entries = [entry for entry, _ in read(self._path)]
        if not entries or entries[0]["kind"] != "journal":  # killed while writing the first line
            self._path.unlink(missing_ok=True)
            entries = []
        self._known = {entry_key(entry) for entry in entries}
        attempts = [entry["attempt"] for entry in entries if entry["kind"] == "begin"]
        self.attempt = max(attempts, default=0) + 1
        self.id: str = entries[0]["id"] if entries else uuid.uuid4().hex
        if not entries:
            self.add("journal", id=self.id, **about)
        if attempts and not ended(entries, self.attempt - 1):
            self.add("end", attempt=self.attempt - 1, **KILLED)

    def add(self, kind: str, **content: Any) -> bool:
        """Write an entry unless the journal has it already. Returns whether it was new."""
        entry = {"kind": kind, "time": time.time_ns() // 1_000_000, **content}
        if entry_key(entry) in self._known:
            return False
        append(self._path, entry)
        self._known.add(entry_key(entry))
        return True


def ended(entries: Iterable[Entry], attempt: int) -> bool:
    return any(entry["kind"] == "end" and entry["attempt"] == attempt for entry in entries)


def entry_key(entry: Entry) -> str:
    """Equal for two entries with the same content. An epoch is identified by its step; times do not count."""
    if entry["kind"] == "epoch":
        return f"epoch {entry['step']}"
    return json.dumps({key: value for key, value in entry.items() if key != "time"}, sort_keys=True)


def append(path: Path, entry: Entry) -> None:
    """Append the entry in one write, so that two processes never mix their lines."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, hidden(json.dumps(entry)).encode() + b"\n")
    finally:
        os.close(descriptor)


def read(path: Path, offset: int = 0) -> list[tuple[Entry, int]]:
    """The entries in the complete lines from `offset` on, each with its end offset. Invalid lines are skipped."""
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
