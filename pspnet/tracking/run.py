"""Lets a stage record facts about itself while it runs."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pspnet.machine.code import CODE, code_digest
from pspnet.machine.events import append, event, new_log
from pspnet.machine.outputs import sync
from pspnet.tracking.journal import Journal
from pspnet.tracking.naming import Values, flat, metrics, of_parts


class StageRun:
    """Records a stage in the event log of the current attempt, starting with the call to `identify`.

    With a root, a journal in that folder points to the log and contains the artifacts. Without a root, the records are
    just events for whoever reads the log.

    No method makes the stage fail. The first error is kept in `error`.
    """

    def __init__(
        self,
        root: Path | None = None,
        stage: str = "",
        sections: Mapping[str, BaseModel] | None = None,
        about: Mapping[str, Any] | None = None,
        attempt: Mapping[str, Any] | None = None,
        opened: Callable[[Path], None] = lambda folder: None,
        log: Path | None = None,
    ) -> None:
        """`about`: facts to record once for the work. `attempt`: facts to record for each attempt at the work."""
        self.journal: Journal | None = None
        self.error: Exception | None = None
        self._root, self._stage, self._sections = root, stage, dict(sections or {})
        self._about, self._attempt, self._opened = dict(about or {}), dict(attempt or {}), opened
        self._log = log

    @property
    def pipeline(self) -> str | None:
        """The key of the pipeline to which this attempt belongs."""
        return self._attempt["pipeline"]["key"] if self._attempt.get("pipeline") else None

    def identify(self, **facts: Any) -> None:
        """Identify the work by these facts, in addition to the stage, its params and its code.

        If all of them are the same as in an earlier run, that run is continued. A folder given as a fact stands for the
        names, sizes and times of its files.
        """
        with self._never_failing():
            if self._root is None:
                return
            identity = {
                "stage": self._stage,
                "params": {name: section.model_dump(mode="json") for name, section in self._sections.items()},
                "facts": {name: _listing(fact) if isinstance(fact, Path) else fact for name, fact in facts.items()},
                "code": code_digest(CODE.get(self._stage, ())),  # a study gives its own digest among the facts
            }
            key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
            params = dict(pair for name, section in self._sections.items() for pair in flat(section, name).items())
            folder = self._root / f"{self._stage}-{key[:16]}"
            log = self._log or new_log(self._root.parent)
            journal = Journal(folder, log, stage=self._stage, key=key, params=params, **self._about)
            journal.add("begin", attempt=journal.attempt, process=_process(), **self._attempt)
            self.journal = journal
            self._opened(journal.folder)

    def _record(self, kind: str, **content: Any) -> None:
        if self.journal:
            self.journal.add(kind, **content)
        elif self._log and self._root is None:
            append(self._log, event(kind, **content))

    @contextmanager
    def _never_failing(self) -> Iterator[None]:
        """Suppress errors inside the block. The first one is kept and reported when the stage ends."""
        try:
            yield
        except Exception as error:
            self.error = self.error or error

    def epochs(self, records: Iterable[Mapping[str, float]]) -> Iterator[Mapping[str, float]]:
        """Record each epoch of a training run as it passes by. After a resume, `records` may repeat earlier epochs."""
        for record in records:
            self.epoch(record)
            yield record

    def epoch(self, record: Mapping[str, float]) -> None:
        with self._never_failing():
            values = {name: value for name, value in record.items() if name not in ("step", "epoch")}
            self._record("epoch", step=int(record["step"]), values=metrics(of_parts(values)))

    def figures(self, values: Values) -> None:
        """Record numbers that describe the whole stage."""
        with self._never_failing():
            self._record("figures", values=metrics(values))

    def headline(self, values: Values) -> None:
        """Record the numbers by which pipelines are compared. They are logged to the pipeline run."""
        with self._never_failing():
            self._record("headline", values=metrics(values), pipeline=self.pipeline)

    def dataset(self, split: str, digest: str, source: Path, images: int) -> None:
        with self._never_failing():
            self._record("dataset", split=split, digest=digest, source=str(source), images=images)

    def artifacts(self, *paths: Path) -> None:
        for path in paths:
            self.artifact(path.name, partial(shutil.copyfile, path))

    def artifact(self, name: str, write: Callable[[Path], object]) -> None:
        """Record a file as an artifact. `write` gets the path to write it to, where it is kept until it is sent."""
        with self._never_failing():
            if self.journal is None:
                return
            partial_file = self.journal.folder / "artifacts" / "partial" / Path(name).name
            partial_file.parent.mkdir(parents=True, exist_ok=True)
            write(partial_file)
            content = hashlib.sha256(name.encode() + b"\0")
            with partial_file.open("rb") as file:
                while block := file.read(1 << 20):
                    content.update(block)
            kept = self.journal.folder / "artifacts" / content.hexdigest()[:16] / partial_file.name
            kept.parent.mkdir(exist_ok=True)
            sync(partial_file)
            partial_file.replace(kept)  # must exist before the entry that refers to it
            self.journal.add("artifact", name=name, file=str(kept.relative_to(self.journal.folder)))

    def end(self, status: str, message: str = "", **facts: Any) -> None:
        """Record how this attempt ended: FINISHED, FAILED or KILLED."""
        with self._never_failing():
            if self.journal:
                self.journal.add("end", attempt=self.journal.attempt, status=status, message=message, **facts)


def _listing(folder: Path) -> str:
    digest = hashlib.sha256()
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(parent, name)  # noqa: PTH118  there may be a million of them
            digest.update(f"{os.path.relpath(path, folder)}\0".encode())
            with suppress(OSError):  # a broken link
                facts = os.stat(path)  # noqa: PTH116
                digest.update(f"{facts.st_size}\0{facts.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _process() -> dict[str, Any]:
    """Facts that let other processes on this machine check whether this process is alive."""
    import platform

    import psutil

    return {"host": platform.node(), "pid": os.getpid(), "created": psutil.Process().create_time()}
