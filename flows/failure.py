"""Finds out why a command failed: the message for the user, and whether a retry can help."""

import signal
from dataclasses import dataclass

from flows import dvc_text
from flows.command import CommandResult
from pspnet.errors import EXIT_CTRL_C, EXIT_TEMPORARY

# Names of Prefect states, as shown in its UI. Only the TEMPORARY ones are retried.
KILLED, BUSY, INTERRUPTED, NETWORK = "Killed", "Busy", "Interrupted", "Network"
TEMPORARY = (KILLED, BUSY, INTERRUPTED, NETWORK)
TIMED_OUT, FAILED = "TimedOut", "Failed"
NOT_KNOWN = 3  # exit status of flows.restore if no machine has run the stage on these inputs

SIGKILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
SIGTERMED = (-signal.SIGTERM, 128 + signal.SIGTERM)
STOPPED = (EXIT_CTRL_C, -signal.SIGINT)


@dataclass(frozen=True)
class Failure:
    name: str
    message: str


def failure_of(ended: CommandResult, timeout_seconds: float | None) -> Failure | None:
    """The reason why the command failed, or None if it succeeded.

    This depends on the exit event or, if there is no such event, on the exit status.
    """
    if ended.timed_out:
        took = f"It ran longer than {timeout_seconds:,.0f} s and was stopped with all its processes."
        return Failure(TIMED_OUT, f"{took} The limit is meta.timeout in dvc.yaml.")
    if ended.status == 0:
        return None
    if ended.end and ended.end["class"] != "done":
        return _from_event(ended.end["class"], ended.end["status"], ended.end["message"])
    return _from_output(ended)


def _from_event(kind: str, status: int, message: str) -> Failure:
    if kind == "busy":
        return Failure(BUSY, message)
    if kind == "interrupted":
        return Failure(INTERRUPTED if status == EXIT_TEMPORARY else FAILED, message)
    if kind == "memory":
        return Failure(FAILED, f"It ran out of memory. {message}".strip())
    if kind == "bug":
        return Failure(FAILED, f"{message}\nThis is a bug. The traceback is in the log.")
    return Failure(FAILED, message)


def _from_output(ended: CommandResult) -> Failure:
    """The reason for a failure without an exit event: of DVC, of a killed command, or of a command that is not ours."""
    found = dvc_text.stage_status(ended.output)
    status = ended.status if found is None else found
    errors = dvc_text.errors(ended.output) or f"It exited with status {status} and no output."
    if status in SIGKILLED:
        return Failure(KILLED, "It was killed. The system does this when memory runs out.")
    is_dvc = found is None  # no stage failed, so the errors come from DVC itself
    if status == EXIT_TEMPORARY or (is_dvc and dvc_text.LOCKED.search(errors)):
        return Failure(BUSY, errors)
    if is_dvc and dvc_text.AWAY.search(errors):
        return Failure(NETWORK, errors)
    if status in SIGTERMED:
        return Failure(INTERRUPTED, "The system asked it to stop.")
    if status in STOPPED:
        return Failure(FAILED, "It was stopped.")
    return Failure(FAILED, errors)
