"""Parses facts from DVC's output that DVC does not provide in any other way.

DVC's exit status, for example, is always 255.
"""

import re
from collections.abc import Callable

LOCKED = re.compile(r"unable to acquire lock|is busy, it is being blocked|lock is held|database is locked", re.I)
AWAY = re.compile(
    r"connection (?:refused|reset|aborted|error|timed out)|failed to connect|could not connect|cannot connect"
    r"|name resolution|name or service not known|network is unreachable|no route to host|timed? ?out"
    r"|(?:service unavailable|slow ?down|too many requests)|endpoint url",
    re.I,
)
_STAGE_STATUS = re.compile(r"failed to run: .*, exited with (-?\d+)")
_NO_ERROR = re.compile(r"WARNING: |Having any troubles\?|If there are no processes with such PIDs|<https://error\.dvc")
# DVC's hints about what to type next. They are removed here, because --quiet would hide errors as well.
_ADVICE = re.compile(
    r"To track the changes with git|\tgit add |To enable auto staging|\tdvc config core|Use `dvc push`"
)
_SHOWN_LINES = 10


def stage_status(output: str) -> int | None:
    """The exit status of the stage that failed, or None if no stage failed."""
    found = _STAGE_STATUS.findall(output)
    return int(found[-1]) if found else None


def errors(output: str) -> str:
    """The output from DVC's first error onward, or the last lines if the command is not DVC."""
    lines = [line for line in output.splitlines() if not _NO_ERROR.match(line)]
    first = next((number for number, line in enumerate(lines) if line.startswith("ERROR: ")), 0)
    return "\n".join(line.removeprefix("ERROR: ") for line in lines[first:][-_SHOWN_LINES:])


def without_advice(on_line: Callable[[str], object]) -> Callable[[str], object]:
    return lambda line: None if _ADVICE.match(line) else on_line(line)
