"""How a command ended: what a person is told, and whether trying again can help."""

import json
import re
import signal
from dataclasses import dataclass
from pathlib import Path

from flows.commands import Ended
from pspnet.errors import EXIT_CTRL_C, EXIT_TEMPORARY

# Names of states, which Prefect's pages show. Of these alone another try may end otherwise.
KILLED, BUSY, INTERRUPTED, NETWORK = "Killed", "Busy", "Interrupted", "Network"
TEMPORARY = (KILLED, BUSY, INTERRUPTED, NETWORK)
TIMED_OUT, FAILED = "TimedOut", "Failed"
NOT_KNOWN = 3  # exit status of flows.restore: no machine has run that

# What DVC says of itself; it has one exit status, 255.
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
class Trouble:
    name: str
    message: str


def trouble(ended: Ended, timeout_seconds: float | None, exit_file: Path | None = None) -> Trouble | None:
    """`exit_file` is where a stage of ours says why it ended; DVC hides that."""
    if ended.timed_out:
        took = f"It took longer than {timeout_seconds:,.0f} s, and was ended with all its processes."
        return Trouble(TIMED_OUT, f"{took} Its limit is meta.timeout in dvc.yaml.")
    if ended.status == 0:
        return None
    if exit_file and exit_file.exists():
        said = json.loads(exit_file.read_text(encoding="utf-8"))
        if said["class"] != "done":
            return _said(said["class"], said["exit"], said["message"])
    return _of_output(ended)


def _of_output(ended: Ended) -> Trouble:
    found = STAGE_STATUS.findall(ended.output)
    status = int(found[-1]) if found else ended.status
    errors = _errors(ended.output) or f"It ended with {status} and said nothing."
    if status in SIGKILLED:
        return Trouble(KILLED, "It was killed, as the system does when memory runs out.")
    is_dvc = not found  # and no stage: what it says is of itself
    if status == EXIT_TEMPORARY or (is_dvc and LOCKED.search(errors)):
        return Trouble(BUSY, errors)
    if is_dvc and AWAY.search(errors):
        return Trouble(NETWORK, errors)
    if status in SIGTERMED:
        return Trouble(INTERRUPTED, "The system has asked it to stop.")
    if status in STOPPED:
        return Trouble(FAILED, "It was stopped.")
    return Trouble(FAILED, errors)


def _said(kind: str, status: int, message: str) -> Trouble:
    if kind == "busy":
        return Trouble(BUSY, message)
    if kind == "interrupted":
        return Trouble(INTERRUPTED if status == EXIT_TEMPORARY else FAILED, message)
    if kind == "memory":
        return Trouble(FAILED, f"It ran out of memory. {message}".strip())
    if kind == "bug":
        return Trouble(FAILED, f"{message}\nThe traceback is in the log: this is a bug.")
    return Trouble(FAILED, message)


def _errors(output: str) -> str:
    """What DVC calls errors, with the lines that belong to them; of another command, what it said last."""
    lines = [line for line in output.splitlines() if not NO_ERROR.match(line)]
    first = next((number for number, line in enumerate(lines) if line.startswith("ERROR: ")), 0)
    return "\n".join(line.removeprefix("ERROR: ") for line in lines[first:][-SHOWN_LINES:])
