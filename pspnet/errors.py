"""The exceptions, and the exit status of each.

PspnetError
├── UserError      the params, data or command are wrong      exit 1    retrying cannot help
├── Busy           another process holds a lock we need,      exit 75   a later try may succeed
│                  or a server is down
└── Interrupted    asked to stop; the work so far is kept
                       by a person (Ctrl-C)                   exit 130
                       by the system (SIGTERM)                exit 75

Any other exception is a bug and shows its traceback.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from socket import gaierror

from pspnet.printable import printable, printable_lines

EXIT_USER = 1
EXIT_TEMPORARY = 75  # EX_TEMPFAIL of sysexits.h
EXIT_CTRL_C = 130


@dataclass(frozen=True)
class Problem:
    """One thing to fix: where it is, what was found, what was expected, and how to fix it. All text is printable."""

    where: str
    found: str
    expected: str = ""
    fix: str = ""
    kind: str = ""  # for raw data: the key in prepare.problems that decides what happens
    count: int = 1  # how many problems this one stands for

    def __post_init__(self) -> None:
        object.__setattr__(self, "where", printable(self.where))
        for name in ("found", "expected", "fix"):
            object.__setattr__(self, name, printable_lines(getattr(self, name)))

    def __str__(self) -> str:
        text = f"{self.where}: {self.found}"
        if self.expected:
            text += f"; expected {self.expected}"
        return f"{text}. {self.fix}" if self.fix else text


class PspnetError(Exception):
    exit_status = EXIT_USER


class UserError(PspnetError):
    """A mistake that the user can fix. One message lists every problem found."""

    def __init__(self, problems: Problem | Sequence[Problem], conclusion: str = "") -> None:
        self.problems = [problems] if isinstance(problems, Problem) else list(problems)
        lines = [str(problem) for problem in self.problems]
        if len(lines) > 1:
            count = sum(problem.count for problem in self.problems)
            lines = [f"{count:,} problems:", *(f"  {line}" for line in lines)]
        super().__init__("\n".join([*lines, conclusion] if conclusion else lines))
        self._conclusion = conclusion

    def __reduce__(self) -> tuple[type["UserError"], tuple[list[Problem], str]]:
        return UserError, (self.problems, self._conclusion)  # lets the error be passed between processes


class Busy(PspnetError):
    exit_status = EXIT_TEMPORARY


class Interrupted(PspnetError):
    def __init__(
        self, exit_status: int, message: str = "Stopped. Nothing is half-written; run the same command to continue."
    ) -> None:
        super().__init__(message)
        self.exit_status = exit_status


def is_network(error: BaseException) -> bool:
    """Whether this error was caused by a connection error. Libraries wrap connection errors in their own errors."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConnectionError | TimeoutError | gaierror):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
