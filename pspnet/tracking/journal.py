"""The journal: everything a stage records for MLflow, one JSON object per line, in order.

The file `journal.jsonl` identifies the work and lists the event log of each attempt; the records are in these logs.
Each line includes its time in milliseconds. MLflow identifies a metric by (name, time, step, value), so sending one
metric twice creates only one row.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from pspnet.machine.events import Event, append, event, read

JOURNAL = "journal.jsonl"
KILLED = {"status": "KILLED", "message": "The process was killed."}  # written on behalf of the killed process
RECORDS = ("journal", "begin", "epoch", "figures", "headline", "dataset", "artifact", "end")  # kinds sent to MLflow


class Record(NamedTuple):
    entry: Event
    file: str  # relative to the journal's folder
    end: int  # offset


class JournalReader:
    """Reads a growing journal: first `journal.jsonl`, then the event logs listed in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logs: list[str] = []
        self.offsets: dict[str, int] = {}  # file -> end of the last relevant line
        self._read: dict[str, int] = {}

    def new(self) -> list[Record]:
        """The records that were added since the last call."""
        found = self._new_in(JOURNAL)
        for name in self.logs:
            found += self._new_in(name)
        return found

    def _new_in(self, name: str) -> list[Record]:
        found = []
        for entry, end in read(self.folder / name, self._read.get(name, 0)):
            self._read[name] = end
            if entry["kind"] == "log":
                self.logs.append(entry["file"])
            elif entry["kind"] in RECORDS:
                found.append(Record(entry, name, end))
            else:
                continue
            self.offsets[name] = end
        return found


class Journal:
    """A journal that is opened for a new attempt at its work. Entries from earlier attempts are not written again."""

    def __init__(self, folder: Path, log: Path, **about: Any) -> None:
        """`log`: the event log of this attempt."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.log = folder, log
        entries = [record.entry for record in JournalReader(folder).new()]
        if not entries or entries[0]["kind"] != "journal":  # killed while writing the first line
            (folder / JOURNAL).unlink(missing_ok=True)
            entries = []
        self._known = {entry_key(entry) for entry in entries}
        attempts = [entry["attempt"] for entry in entries if entry["kind"] == "begin"]
        self.attempt = max(attempts, default=0) + 1
        self.id: str = entries[0]["id"] if entries else uuid4().hex
        if not entries:
            append(folder / JOURNAL, event("journal", id=self.id, **about))
        append(folder / JOURNAL, event("log", file=os.path.relpath(log.resolve(), folder.resolve())))
        if attempts and not ended(entries, self.attempt - 1):
            self.add("end", attempt=self.attempt - 1, **KILLED)

    def add(self, kind: str, **content: Any) -> bool:
        """Write an entry unless the journal already has it. Returns whether it was new."""
        entry = event(kind, **content)
        if entry_key(entry) in self._known:
            return False
        append(self.log, entry)
        self._known.add(entry_key(entry))
        return True


def ended(entries: Iterable[Event], attempt: int) -> bool:
    return any(entry["kind"] == "end" and entry["attempt"] == attempt for entry in entries)


def entry_key(entry: Event) -> str:
    """A key that is equal for entries with equal content. An epoch is identified by its step; times are ignored."""
    if entry["kind"] == "epoch":
        return f"epoch {entry['step']}"
    return json.dumps({key: value for key, value in entry.items() if key != "time"}, sort_keys=True)
