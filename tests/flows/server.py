"""One Prefect server for all tests in a process. Each test has its own flows, deployments and runs.

Prefect takes five seconds to create its tables, so they are created once and copied.
"""

import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from flows.laptop import server


@dataclass(frozen=True)
class PrefectServer:
    api: str
    password: str
    database: Path  # an SQLite file

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that make a process use the server."""
        return {"PREFECT_API_URL": self.api, "PREFECT_API_AUTH_STRING": self.password}

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within the block, this process uses the server."""
        with temporary_settings({PREFECT_API_URL: self.api, PREFECT_API_AUTH_STRING: self.password}):
            yield


def make_tables(home: Path, python: str) -> None:
    with prefect_server(home, python) as server:
        pass
    with closing(sqlite3.connect(server.database)) as database:
        # Otherwise the server leaves most of the data in a separate file.
        database.execute("pragma wal_checkpoint(truncate)")


def copy_tables(source: Path, home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "prefect.db", home / "prefect.db")


@contextmanager
def prefect_server(home: Path, python: str) -> Iterator[PrefectServer]:
    """Run a server in a separate process. Prefect's test harness would leave a thread that breaks later forks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", python)
        patch.setenv("PREFECT_HOME", str(home))
        for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING"):  # `start` sets these variables
            patch.setenv(name, "")
        password = server.new_password()
        process = server.start(home, 0, password, server.ONE_RUN)
    try:
        yield PrefectServer(f"{process.address}/api", password, home / "prefect.db")
    finally:
        process.stop()
