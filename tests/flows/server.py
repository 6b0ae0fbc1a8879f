"""One Prefect server for all of pytest's processes: tests are told apart by their own flows, deployments and runs."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock
import pytest

from flows import server
from tests.network import free_port
from tests.tracking.server import answers


@dataclass(frozen=True)
class PrefectServer:
    api: str
    database: Path  # SQLite


@contextmanager
def prefect_server(folder: Path) -> Iterator[PrefectServer]:
    """Who comes first starts it, and stops it when nobody uses it any more; it dies with who has started it.

    A process of its own: Prefect's test harness leaves a thread in ours that breaks every process forked later.
    """
    folder.mkdir(parents=True, exist_ok=True)
    address, ours = folder / "address", False
    with (folder / "users").open("w") as users, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(users, fcntl.LOCK_SH)  # which the system gives back however we end
        with filelock.FileLock(folder / "start.lock"):
            if not address.exists() or not answers(f"{address.read_text()}/health"):
                patch.setenv("PREFECT_HOME", str(folder))
                patch.setenv("PREFECT_API_URL", "")  # `start` sets it
                process = server.start(folder, free_port(), server.BRIEF)
                address.write_text(os.environ["PREFECT_API_URL"])
                patch.undo()
                ours = True
        try:
            yield PrefectServer(address.read_text(), folder / "prefect.db")
        finally:
            if ours:
                fcntl.flock(users, fcntl.LOCK_EX)
                server.stop(process)
