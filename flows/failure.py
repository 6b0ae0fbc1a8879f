"""Why a command failed: the message for the user, and whether a retry can help."""

import json
import re
import signal
from dataclasses import dataclass
from pathlib import Path

from flows.command import CommandResult
from pspnet.errors import EXIT_CTRL_C, EXIT_TEMPORARY

# Names of Prefect states, shown on its pages. Only the TEMPORARY ones are retried.
KILLED, BUSY, INTERRUPTED, NETWORK = "Killed", "Busy", "Interrupted", "Network"
TEMPORARY = (KILLED, BUSY, INTERRUPTED, NETWORK)
TIMED_OUT, FAILED = "TimedOut", "Failed"
NOT_KNOWN = 3  # exit status of flows.restore: no machine has run this stage on these inputs

# DVC's own errors; its exit status is always 255.
LOCKED = re.compile(r"unable to acquire lock|is busy, it is being blocked|lock is held|database is locked", re.I)
AWAY = re.compile(
    r"connection (?:refused|reset|aborted|error|timed out)|failed to connect|could not connect|cannot connect"
    r"|name resolution|name or service not known|network is unreachable|no route to host|timed? ?out"
    r"|(?:service unavailable|slow ?down|too many requests)|endpoint url",
    re.I,
)
NO_ERROR = re.compile(r"WARNING: |Having any troubles\?|If there are no processes with such PIDs|<https://error\.dvc")
STAGE_STATUS = re.compile(r"failed to run: .*, exited with (-?\d+)")
SIGKILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
SIGTERMED = (-signal.SIGTERM, 128 + signal.SIGTERM)
STOPPED = (EXIT_CTRL_C, -signal.SIGINT)
SHOWN_LINES = 10


@dataclass(frozen=True)
class Failure:
    name: str
    message: str


def failure_of(ended: CommandResult, timeout_seconds: float | None, exit_file: Path | None = None) -> Failure | None:
    """The failure, or None if the command succeeded.

    `exit_file`: where one of our stages writes why it ended, since DVC hides the stage's exit status.
    """
    if ended.timed_out:
        took = f"It ran longer than {timeout_seconds:,.0f} s and was ended with all its processes."
        return Failure(TIMED_OUT, f"{took} The limit is meta.timeout in dvc.yaml.")
    if ended.status == 0:
        return None
    if exit_file and exit_file.exists():
        facts = json.loads(exit_file.read_text(encoding="utf-8"))
        if facts["class"] != "done":
            return _from_exit_file(facts["class"], facts["exit"], facts["message"])
    return _from_output(ended)


def _from_output(ended: CommandResult) -> Failure:
    found = STAGE_STATUS.findall(ended.output)
    status = int(found[-1]) if found else ended.status
    errors = _errors(ended.output) or f"It ended with exit status {status} and no output."
    if status in SIGKILLED:
        return Failure(KILLED, "It was killed. The system does this when memory runs out.")
    is_dvc = not found  # no stage failed, so the errors are DVC's own
    if status == EXIT_TEMPORARY or (is_dvc and LOCKED.search(errors)):
        return Failure(BUSY, errors)
    if is_dvc and AWAY.search(errors):
        return Failure(NETWORK, errors)
    if status in SIGTERMED:
        return Failure(INTERRUPTED, "The system asked it to stop.")
    if status in STOPPED:
        return Failure(FAILED, "It was stopped.")
    return Failure(FAILED, errors)


def _from_exit_file(kind: str, status: int, message: str) -> Failure:
    if kind == "busy":
        return Failure(BUSY, message)
    if kind == "interrupted":
        return Failure(INTERRUPTED if status == EXIT_TEMPORARY else FAILED, message)
    if kind == "memory":
        return Failure(FAILED, f"It ran out of memory. {message}".strip())
    if kind == "bug":
        return Failure(FAILED, f"{message}\nThis is a bug. The traceback is in the log.")
    return Failure(FAILED, message)


def _errors(output: str) -> str:
    """The lines from DVC's first error on, or the last lines of a command that is not DVC."""
    lines = [line for line in output.splitlines() if not NO_ERROR.match(line)]
    first = next((number for number, line in enumerate(lines) if line.startswith("ERROR: ")), 0)
    return "\n".join(line.removeprefix("ERROR: ") for line in lines[first:][-SHOWN_LINES:])
