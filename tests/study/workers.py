"""Processes that work on a study, some of which are killed."""

import os
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.forked import FORKED
from tests.study.conftest import run_study
from tests.study.test_studying import made_by

ENVIRONMENT = {"PSPNET_CHECKPOINT_SECONDS": "0", "PSPNET_LOADER_WORKERS": "0", "PSPNET_TRACKING": "off"}


def start(prepared: Path, out: Path) -> tuple[BaseProcess, Connection]:
    """A process that works on the study; it sends each note, and the names of the runs it has made at the end."""
    ours, theirs = FORKED.Pipe(duplex=False)
    process = FORKED.Process(target=_work, args=(prepared, out, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _work(prepared: Path, out: Path, talk: Connection) -> None:
    os.environ.update(ENVIRONMENT)
    notes: list[str] = []

    def tick(done: int, total: int, note: str) -> None:
        notes.append(note)
        talk.send(note)

    run_study(prepared, out, tick)
    talk.send(made_by(notes))


def result_of(talk: Connection) -> list[str]:
    """The names of the runs that the process has made."""
    while True:
        told = talk.recv()
        if isinstance(told, list):
            return told
