"""One Prefect server for all tests of a process: they are told apart by their own flows, deployments and runs.

Prefect takes five seconds to make its tables: they are made once.
"""

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows import server
from tests.network import free_port


@dataclass(frozen=True)
class PrefectServer:
    api: str
    database: Path  # SQLite


def make_tables(home: Path) -> None:
    with prefect_server(home) as server:
        pass
    with closing(sqlite3.connect(server.database)) as database:
        database.execute("pragma wal_checkpoint(truncate)")  # the server leaves most of it in another file


def copy_tables(source: Path, home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "prefect.db", home / "prefect.db")


@contextmanager
def prefect_server(home: Path) -> Iterator[PrefectServer]:
    """A process of its own: Prefect's test harness leaves a thread in ours that breaks every process forked later."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(home))
        patch.setenv("PREFECT_API_URL", "")  # `start` sets it
        process = server.start(home, free_port(), server.BRIEF)
        api = os.environ["PREFECT_API_URL"]
    try:
        yield PrefectServer(api, home / "prefect.db")
    finally:
        server.stop(process)
