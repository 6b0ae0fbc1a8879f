"""The process beside a stage that sends its journal to MLflow while it grows.

python -m pspnet.tracking.sender STATE PID

PID is the stage's. On our standard input it names the folder of the journal; another line or the end: it is over.
"""

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

import filelock

from pspnet.offline import go_offline
from pspnet.tracking import delivery
from pspnet.tracking.connection import connect, impatience
from pspnet.tracking.delivery import Delivery, logger
from pspnet.tracking.system import SystemMetrics

POLL_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 2.0  # between two tries to reach a server that is away
LAST_SECONDS = 20.0  # for what is left when the stage is over
LAST_SECONDS_AWAY = 3.0  # if the server is away then
OTHERS_SECONDS = 5.0  # for what other journals hold


class Watch:
    """Knows when the stage is over, and ends this process when its time is up, whatever hangs."""

    def __init__(self, parent: int) -> None:
        self._parent = parent
        self.folder: Path | None = None
        self.named, self.over = threading.Event(), threading.Event()
        self.away = False
        self.done_at: float | None = None  # when our own journal was delivered
        threading.Thread(target=self._listen, daemon=True).start()
        threading.Thread(target=self._watch, daemon=True).start()

    def _listen(self) -> None:
        if line := sys.stdin.buffer.readline().decode().rstrip("\n"):
            self.folder = Path(line)
            self.named.set()
            sys.stdin.buffer.readline()
        self._end()

    def _end(self) -> None:
        if self.folder is None:
            os._exit(0)
        self.over.set()

    def _watch(self) -> None:
        while not self.over.wait(POLL_SECONDS):
            if os.getppid() != self._parent:  # killed, while a child of its own may hold our input open
                self._end()
        over = time.monotonic()
        while time.monotonic() < over + (LAST_SECONDS_AWAY if self.away else LAST_SECONDS):
            if self.done_at and time.monotonic() > max(self.done_at, over) + OTHERS_SECONDS:
                os._exit(0)
            time.sleep(0.1)
        os._exit(delivery.TOO_LATE)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they reach the whole group; the stage decides what follows
    state = Path(sys.argv[1])
    watch = Watch(int(sys.argv[2]))
    os.nice(5)
    go_offline()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logger.setLevel(logging.INFO)
    import mlflow.tracking  # noqa: F401  it takes seconds, in which the stage is loading too

    watch.named.wait()
    assert watch.folder
    log = os.open(watch.folder / "sender.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log, stream.fileno())
    with impatience(), _locked(watch.folder):
        send(state, Delivery(state, watch.folder), watch)
    os._exit(0)  # the stage waits: half a second less than leaving one by one what MLflow has loaded


def _locked(folder: Path) -> filelock.BaseFileLock:
    """Once the sender of an earlier attempt has gone."""
    held = delivery.lock(folder)
    held.timeout = -1
    return held


def send(state: Path, own: Delivery, watch: Watch) -> None:
    client = None
    system = SystemMetrics()
    others_are_due, pause = True, POLL_SECONDS
    while True:
        over = watch.over.is_set()  # before the look: nothing is told after it
        own.look()
        if over:
            own.end_if_dead()
        system.sample(at_least_one=over)
        try:
            client = client or connect(state)
            own.send(client)
            if own.run_id:
                system.send(client, own.run_id)
            watch.away, pause = False, POLL_SECONDS
        except Exception as error:
            if not watch.away:
                logger.info("%s", error, exc_info=True)
            own.explain(error)
            watch.away, pause = True, min(2 * pause, LONGEST_PAUSE_SECONDS)
        else:
            if over and own.ended:
                watch.done_at = time.monotonic()
            if others_are_due:
                others_are_due = False
                for failure in delivery.replay(state):
                    logger.info(failure)
                delivery.prune(state)
            if over and own.ended and not own.pending:
                return
        if over:
            time.sleep(POLL_SECONDS if watch.away else 0.1)
        else:
            watch.over.wait(pause)


if __name__ == "__main__":
    main()
