"""Child processes that send a journal or create a database, each killed and started again until one succeeds.

They are forked from a process with MLflow loaded, so that the kills hit the work, not the imports.
"""

import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pspnet.tracking.backlog import unsent
from pspnet.tracking.connection import connect
from tests.forked import FORKED


def in_child(work: Callable[..., object], uri: str, *arguments: Any) -> Any:
    """Call `work` in a process that uses the tracking server at `uri`. Returns the result of `work`."""
    ours, theirs = FORKED.Pipe()
    process = FORKED.Process(target=_call, args=(theirs, work, uri, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise AssertionError("the process failed; see its standard error") from None
    finally:
        process.join()


def _call(results: Connection, work: Callable[..., object], uri: str, arguments: tuple[Any, ...]) -> None:
    os.environ["MLFLOW_TRACKING_URI"] = uri
    results.send(work(*arguments))


def send(state: Path, folder: Path, seed: int) -> int:
    """Deliver a journal with several senders, each killed later than the one before. Returns how many were killed."""
    rng = random.Random(seed)
    tries = kills = 0
    while delivery := unsent(state, folder):
        child = os.fork()
        if child == 0:
            delivery.send(connect(state))
            os._exit(0)
        tries += 1
        time.sleep(rng.uniform(0, 0.03 * tries))
        kills += _killed(child)
    return kills


def make(state: Path, database: Path) -> int:
    """Create a database, killing the process that creates it when the database has 1, 20 and 40 tables. Returns the
    number of kills.
    """
    kills = 0
    for tables in (1, 20, 40):
        child = os.fork()
        if child == 0:
            connect(state)
            os._exit(0)
        while database.read_bytes().count(b"CREATE TABLE") < tables if database.exists() else True:
            time.sleep(0.01)
        kills += _killed(child)
    connect(state)
    return kills


def _killed(child: int) -> bool:
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)
