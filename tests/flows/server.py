"""One Prefect server for all tests of a process: they are told apart by their own flows, deployments and runs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows import server
from tests.network import free_port


@dataclass(frozen=True)
class PrefectServer:
    api: str
    database: Path  # SQLite


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
