"""One attempt at a stage: starts the sender, records how the attempt ends, and writes the run record."""

import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from pspnet.config.params import Params
from pspnet.errors import Interrupted, Problem, UserError
from pspnet.machine import events
from pspnet.machine.outputs import private_file, whole_file
from pspnet.machine.process import on_stop_request
from pspnet.tracking.backlog import undelivered
from pspnet.tracking.connection import reason
from pspnet.tracking.delivery import TOO_LATE, Delivery
from pspnet.tracking.pipeline import circumstances, pipeline_key, pipeline_params
from pspnet.tracking.receipt import Receipt
from pspnet.tracking.run import StageRun

PATIENCE_SECONDS = 120.0  # longer than a sender takes to give up by itself, which is much sooner if the server is down
IMPATIENCE_SECONDS = 5.0  # after Ctrl-C, or if the journal could not be written
LONGEST_MESSAGE = 2000


def tracking_is_on() -> bool:
    setting = os.environ.get("PSPNET_TRACKING", "on")
    if setting not in ("on", "off"):
        raise UserError(Problem("PSPNET_TRACKING", f"is '{setting}'", "on or off"))
    return setting == "on"


@dataclass(frozen=True)
class Place:
    """Where a run belongs in MLflow if it is not a stage of the pipeline."""

    kind: str  # of its parent, whose tag pspnet.kind says so
    key: str  # of its parent: runs with the same key are siblings
    name: str
    tags: Mapping[str, str]


class Sender(Protocol):
    """Sends a growing journal to MLflow."""

    def follow(self, folder: Path) -> None:
        """Send the journal in this folder."""

    def finish(self, seconds: float) -> int | None:
        """Tell the sender that nothing more will be written.

        Returns the sender's exit status, or None if the sender does not exit within `seconds`.
        """


class SenderProcess:
    """A sender in a separate process, which loads MLflow while the stage is loading."""

    def __init__(self, state: Path) -> None:
        (state / "tracking").mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-P", "-m", "pspnet.tracking.sender", str(state.resolve()), str(os.getpid())]
        # The process logs here until it knows the journal's folder.
        with open(state / "tracking/sender.log", "w", opener=private_file) as log:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, bufsize=0)

    def follow(self, folder: Path) -> None:
        assert self._process.stdin
        with suppress(BrokenPipeError):  # the sender died; `finish` returns its exit status
            self._process.stdin.write(f"{folder.resolve()}\n".encode())

    def finish(self, seconds: float) -> int | None:
        assert self._process.stdin
        with suppress(BrokenPipeError):
            self._process.stdin.write(b"\n")  # closing is not enough, because a loader process may hold the pipe open
            self._process.stdin.close()
        try:
            with _stop_requests_interrupt():
                return self._process.wait(seconds)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            return None
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()


@contextmanager
def _stop_requests_interrupt() -> Iterator[None]:
    """Make Ctrl-C and SIGTERM raise KeyboardInterrupt at once inside the block: there is no next step to wait for."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with on_stop_request(interrupt):
        yield


@contextmanager
def stage_run(
    state: Path,
    stage: str,
    params: Params,
    sections: Sequence[str],
    out: Path | None,
    warn: Callable[[str], object],
    start_sender: Callable[[Path], Sender] = SenderProcess,
    place: Place | None = None,
) -> Iterator[StageRun]:
    """Send whatever the stage records inside the block to MLflow, then write the run record to `out`.

    `place`: if it is not a stage of the pipeline.

    Tracking errors are reported in one line through `warn`, and never make the stage fail.
    """
    started = time.monotonic()
    run = StageRun(log=events.log())
    sender: Sender | None = None
    if tracking_is_on():
        try:
            sender = start_sender(state)
            run = _open(state, stage, params, sections, sender, place)
        except Exception as error:
            warn(f"{stage}: this run is not tracked ({reason(error)}).")
    try:
        yield run
    except BaseException as error:
        stopped = isinstance(error, Interrupted | KeyboardInterrupt)
        run.end("KILLED" if stopped else "FAILED", (str(error) or type(error).__name__)[:LONGEST_MESSAGE])
        _close(state, stage, run, sender, IMPATIENCE_SECONDS if stopped else PATIENCE_SECONDS, warn)
        raise
    run.end("FINISHED")
    _close(state, stage, run, sender, PATIENCE_SECONDS, warn)
    if out:
        _write_record(out, run, params, time.monotonic() - started)


def _open(
    state: Path, stage: str, params: Params, sections: Sequence[str], sender: Sender, place: Place | None
) -> StageRun:
    pipeline = {"key": place.key if place else pipeline_key(params), "params": pipeline_params(params)}
    about, own_tags = {}, {}
    if place:
        pipeline["kind"] = place.kind
        about, own_tags = {"name": place.name}, dict(place.tags)
    started = time.time_ns() // 1_000_000
    return StageRun(
        state / "tracking",
        stage,
        {name: getattr(params, name) for name in sections},
        about={"experiment": params.registry.model, "started": started, **about},
        attempt={"pipeline": pipeline, "tags": circumstances(), "own_tags": own_tags, "started": started},
        opened=sender.follow,
        log=events.log(),
    )


def _close(
    state: Path, stage: str, run: StageRun, sender: Sender | None, seconds: float, warn: Callable[[str], object]
) -> None:
    try:
        status = sender.finish(seconds if run.error is None else IMPATIENCE_SECONDS) if sender else None
        if run.error:
            warn(f"{stage}: this run is only partly tracked ({reason(run.error)}).")
        if run.journal and (pending := Delivery(state, run.journal.folder).pending):
            late = status in (None, TOO_LATE)
            why = "there was no time left" if late else f"the sender exited with status {status}"
            why = Receipt.of(run.journal.folder).trouble or why
            warn(f"{stage}: {undelivered(state, run.journal.folder, len(pending), why)}")
    except Exception as error:
        warn(f"{stage}: this run may not be tracked ({reason(error)}).")


def _write_record(out: Path, run: StageRun, params: Params, seconds: float) -> None:
    """Write the run record. No stage may depend on it, because it differs between machines and between runs."""
    receipt = Receipt.of(run.journal.folder) if run.journal else Receipt()
    facts = {
        "run_id": receipt.run_id or None,
        "journal": run.journal.id if run.journal else None,
        "experiment": params.registry.model,
        "server": receipt.server or None,
        "pipeline": run.pipeline,
        "seconds": round(seconds, 1),
        "machine": _machine(),
    }
    with whole_file(out) as partial:
        partial.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _machine() -> dict[str, Any]:
    facts: dict[str, Any] = {
        "host": platform.node(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }
    torch = sys.modules.get("torch")  # loaded only by stages that use it
    if torch and torch.cuda.is_initialized():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts
