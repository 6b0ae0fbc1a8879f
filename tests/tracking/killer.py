"""Children that send or make a database, each killed and started again until one comes through.

Run in a process forked from one with MLflow loaded, so that the kills hit the work and not the loading.
"""

import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pspnet.tracking.connection import connect
from pspnet.tracking.delivery import unsent
from tests.forked import FORKED


def in_child(work: Callable[..., object], uri: str, *arguments: Any) -> Any:
    """What `work` returned in a process whose tracking server is at `uri`."""
    ours, theirs = FORKED.Pipe()
    process = FORKED.Process(target=_call, args=(theirs, work, uri, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise AssertionError("the process has failed; its error is on its standard error") from None
    finally:
        process.join()


def _call(told: Connection, work: Callable[..., object], uri: str, arguments: tuple[Any, ...]) -> None:
    os.environ["MLFLOW_TRACKING_URI"] = uri
    told.send(work(*arguments))


def send(state: Path, folder: Path, seed: int) -> int:
    """Deliver a journal by senders killed ever later. Returns how many were killed."""
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
    """Make a database, killed when it has 1, 20 and 40 tables. Returns how many times it was killed."""
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
