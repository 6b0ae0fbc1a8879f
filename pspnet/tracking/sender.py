"""The process that runs alongside a stage and sends its growing journal to MLflow.

python -m pspnet.tracking.sender STATE PID

PID is the process id of the stage. The stage writes the journal's folder to the sender's standard input. A second line,
or the end of the input, means that the stage has ended.
"""

import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from pspnet.machine.credentials import hide_in_output
from pspnet.machine.offline import go_offline
from pspnet.tracking import backlog
from pspnet.tracking.connection import connect, short_timeouts, tracking_uri
from pspnet.tracking.delivery import TOO_LATE, Delivery, lock, logger
from pspnet.tracking.system import SystemMetrics

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

WATCH_SECONDS = 0.1
WORK_SECONDS = 0.02  # CPU time; using less does not count as progress
UNUSED = ("pandas", "scipy")  # optional for MLflow's client, but they take a quarter of its import time


@dataclass(frozen=True)
class Limits:
    """How long to wait for what, in seconds."""

    poll: float = 0.5
    longest_pause: float = 2.0  # between attempts to reach a server that is down
    last: float = 110.0  # in all, after the stage has ended; a busy machine may need 30 s to import MLflow
    still: float = 20.0  # without progress, after the stage has ended; then something does not respond
    away: float = 3.0  # for a server that is down, after the stage has ended
    others: float = 5.0  # for sending other journals, after our own is delivered


class Watch:
    """Keeps track of the stage and of how sending progresses, and decides when to give up."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.folder: Path | None = None
        self.named, self.over = threading.Event(), threading.Event()
        self.away_since: float | None = None
        self.done_at: float | None = None  # when our own journal was delivered
        self._over_at = 0.0
        self._worked, self._worked_at = 0.0, 0.0

    def name(self, folder: Path) -> None:
        self.folder = folder
        self.named.set()

    def end(self) -> None:
        self._over_at = self._worked_at = time.monotonic()
        self.over.set()

    def verdict(self, now: float, worked: float) -> int | None:
        """The exit status once time is up, otherwise None. `worked` is the CPU time spent on sending.

        CPU time indicates progress: importing MLflow and talking to a server use some, and waiting for a response uses
        none.
        """
        if worked - self._worked >= WORK_SECONDS:
            self._worked, self._worked_at = worked, now
        if self.done_at is not None and now > max(self.done_at, self._over_at) + self.limits.others:
            return 0
        ends = [self._over_at + self.limits.last, self._worked_at + self.limits.still]
        if (since := self.away_since) is not None:
            ends.append(max(since, self._over_at) + self.limits.away)
        return TOO_LATE if now > min(ends) else None


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # these reach the whole process group, but the stage decides when we stop
    state, stage = Path(sys.argv[1]), int(sys.argv[2])
    watch = Watch(Limits())
    threading.Thread(target=_listen, args=(watch,), daemon=True).start()
    threading.Thread(target=_guard, args=(watch, stage), daemon=True).start()
    go_offline()
    hide_in_output()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logger.setLevel(logging.INFO)
    _load(state)
    watch.named.wait()
    assert watch.folder
    log = os.open(watch.folder / "sender.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log, stream.fileno())
    with short_timeouts(), _locked(watch.folder):
        sending = Sending(state, Delivery(state, watch.folder), watch)
        while not sending.step():
            sending.pause()
    os._exit(0)  # the stage is waiting, and Python's cleanup would take half a second


def _listen(watch: Watch) -> None:
    """Read what the stage writes to this process's standard input."""
    if line := sys.stdin.buffer.readline().decode().rstrip("\n"):
        watch.name(Path(line))
        sys.stdin.buffer.readline()
    _end(watch)


def _guard(watch: Watch, stage: int) -> None:
    """Exit when this process's time is up, even if something hangs."""
    while not watch.over.wait(watch.limits.poll):
        if os.getppid() != stage:  # the stage was killed, and one of its children may hold our input open
            _end(watch)
    while (status := watch.verdict(time.monotonic(), time.process_time() - time.thread_time())) is None:
        time.sleep(WATCH_SECONDS)
    os._exit(status)


def _end(watch: Watch) -> None:
    if watch.folder is None:
        os._exit(0)
    watch.end()


def _load(state: Path) -> None:
    """Import everything needed for sending, while the stage itself is still loading."""
    for name in UNUSED:
        sys.modules[name] = None  # type: ignore[assignment]
    gc.disable()  # collects nothing here, but takes a third of the import time
    import mlflow.tracking

    if not tracking_uri(state).startswith("http"):
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    gc.enable()


def _locked(folder: Path) -> filelock.BaseFileLock:
    """The journal's lock. Acquiring it waits until the sender of an earlier attempt has exited."""
    held = lock(folder)
    held.timeout = -1
    return held


class Sending:
    """Sends the stage's own journal, then the pending entries of other journals."""

    def __init__(self, state: Path, own: Delivery, watch: Watch) -> None:
        self._state, self._own, self._watch = state, own, watch
        self._client: MlflowClient | None = None
        self._system = SystemMetrics()
        self._others_are_due, self._pause = True, watch.limits.poll

    def step(self) -> bool:
        """Send everything that is pending. Returns whether the stage has ended and nothing is left to send."""
        watch, own = self._watch, self._own
        over = watch.over.is_set()  # checked before reading: once it is set, no more entries are written
        own.read_journal()
        if over:
            own.end_if_dead()
        self._system.sample(at_least_one=over)
        try:
            self._client = self._client or connect(self._state)
            own.send(self._client)
            if own.run_id:
                self._system.send(self._client, own.run_id)
        except Exception as error:
            if watch.away_since is None:
                watch.away_since = time.monotonic()
                logger.info("%s", error, exc_info=True)
            own.record_failure(error)
            self._pause = min(2 * self._pause, watch.limits.longest_pause)
            return False
        watch.away_since, self._pause = None, watch.limits.poll
        if over and own.ended:
            watch.done_at = watch.done_at or time.monotonic()
        if self._others_are_due:
            self._send_others(stop=(lambda: False) if over else watch.over.is_set)
        return over and own.ended

    def _send_others(self, stop: Callable[[], bool]) -> None:
        for failure in backlog.replay(self._state, stop):
            logger.info(failure)
        backlog.prune(self._state)
        self._others_are_due = stop()  # the end of our own journal takes precedence

    def pause(self) -> None:
        limits = self._watch.limits
        if self._watch.over.is_set():
            time.sleep(limits.poll if self._watch.away_since is not None else WATCH_SECONDS)
        else:
            self._watch.over.wait(self._pause)


if __name__ == "__main__":
    main()
