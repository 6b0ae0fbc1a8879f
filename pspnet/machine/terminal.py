"""How a command interacts with the person or program that runs it: progress, Ctrl-C, errors and exit status."""

import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from pspnet.errors import EXIT_CTRL_C, EXIT_TEMPORARY, Busy, Interrupted, Problem, PspnetError, UserError, is_network
from pspnet.machine.events import tell
from pspnet.machine.outputs import user_error_for
from pspnet.machine.process import die_with_launcher, end_with_dvc, on_stop_request, ranks
from pspnet.printable import printable, printable_lines

Tick = Callable[[int, int, str], None]


class _Console(Console):
    """A console whose text cannot control the terminal, even if it contains hostile file names."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable_lines(text), **options)


out = _Console(highlight=False, soft_wrap=True)
err = _Console(highlight=False, soft_wrap=True, stderr=True)


def note(text: str) -> None:
    """Print what a person should know although the command goes on."""
    err.print(text, style="yellow", markup=False)


def print_differences(title: str, differing: Mapping[str, tuple[Any, Any]]) -> None:
    """Print a table of parameters with both values. A missing value (None) is left blank."""
    table = Table("parameter", "before", "now", title=title, title_justify="left")
    for key, values in differing.items():
        table.add_row(escape(key), *("" if value is None else escape(str(value)) for value in values))
    out.print(table)


LINE_SECONDS = 10  # seconds between progress lines when there is no terminal
EVENT_SECONDS = 2  # seconds between progress events
LONGEST_LINE = 300


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")


@contextmanager
def progress(title: str) -> Iterator[Tick]:
    """Show a bar with rate and time left, or lines if there is no terminal. Ctrl-C takes effect at the next tick."""
    report = _events(title)
    with _stop_requests() as requested, _bar(title) if err.is_terminal else _lines(title) as show:

        def tick(done: int, total: int, note: str) -> None:
            note = printable(note)
            show(done, total, note)
            report(done, total, note)
            if requested:
                raise Interrupted(requested[0])

        yield tick


def _events(title: str) -> Tick:
    """Report progress in the event log, if a flow reads it."""
    next_at = 0.0

    def report(done: int, total: int, note: str) -> None:
        nonlocal next_at
        if (now := time.monotonic()) >= next_at:
            next_at = now + EVENT_SECONDS
            tell("progress", title=title, done=done, total=total, note=note)

    return report


@contextmanager
def _bar(title: str) -> Iterator[Tick]:
    columns = (TextColumn(f"[bold]{title}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn(),
               TextColumn("{task.description}", markup=False))  # fmt: skip
    with Progress(*columns, console=err, transient=True) as bars:
        task = bars.add_task("", total=None)
        yield lambda done, total, note: bars.update(task, completed=done, total=total, description=note)


@contextmanager
def _lines(title: str) -> Iterator[Tick]:
    started = last = time.monotonic()
    first: int | None = None

    def show(done: int, total: int, note: str) -> None:
        nonlocal last, first
        first = done if first is None else first  # a resumed run starts in the middle
        now = time.monotonic()
        if now - last < LINE_SECONDS:
            return
        last = now
        rate = (done - first) / (now - started)
        left = f"{rate:,.0f}/s, {(total - done) / rate:,.0f} s left, " if rate else ""
        err.print(f"{title}: {done:,}/{total:,}, {left}{note}", markup=False)

    yield show


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collect the exit statuses requested by signals. A second Ctrl-C stops at once."""
    requested: list[int] = []

    def request(number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        requested.append(EXIT_CTRL_C if number == signal.SIGINT else EXIT_TEMPORARY)

    with on_stop_request(request):
        yield requested


@contextmanager
def stage(name: str) -> Iterator[Tick]:
    """Run a stage. The stage ends when its parent ends."""
    if ranks() > 1:
        die_with_launcher()
    else:
        end_with_dvc()  # does nothing unless DVC runs it: a run started by hand may outlive its terminal
    started = time.monotonic()
    try:
        with progress(name) as tick:
            yield tick
    except KeyboardInterrupt:
        raise Interrupted(EXIT_CTRL_C, "Stopped at once.") from None
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # this is torch's class, but torch is not imported here
            raise _out_of_memory(name) from error
        raise
    err.print(f"[bold]{name}[/]: done in {time.monotonic() - started:.0f} s")


def _out_of_memory(name: str) -> UserError:
    fix = f"Lower {name}.batch_size or the size of its crops, or set runtime.precision: bf16."
    return UserError(Problem(name, "needs more memory than the device has", fix=fix))


class _End(NamedTuple):
    """How a command ended. The class determines whether a flow retries it."""

    kind: str  # done, user, busy, interrupted, memory, bug
    status: int
    message: str

    def tell(self) -> None:
        """Write the exit event. A killed command writes no exit event."""
        tell("exit", **{"class": self.kind, "status": self.status, "message": self.message})


def run(command: Callable[[], object]) -> None:
    """Run a command and exit with its status. A user error prints a message, and a bug prints a traceback."""
    try:
        command()
    except SystemExit as ended:  # how Typer ends a command
        if not ended.code:
            _End("done", 0, "").tell()
        raise
    except BaseException as error:
        end = _end_of(error)
        end.tell()
        if end.kind in ("memory", "bug"):
            raise
        err.print(end.message, style="yellow" if end.kind == "interrupted" else "red", markup=False)
        sys.exit(end.status)
    _End("done", 0, "").tell()


def _end_of(error: BaseException) -> _End:
    error = user_error_for(error) or error
    match error:
        case Busy():
            kind = "busy"
        case Interrupted():
            kind = "interrupted"
        case PspnetError():
            kind = "user"
        case KeyboardInterrupt():
            return _End("interrupted", EXIT_CTRL_C, "Stopped.")
        case MemoryError():
            return _End("memory", 1, str(error))
        case _ if is_network(error):
            last = (str(error) or type(error).__name__).splitlines()[0][:LONGEST_LINE]
            return _End("busy", EXIT_TEMPORARY, f"A connection failed ({last}). Try again when it is back.")
        case _:
            return _End("bug", 1, f"{type(error).__name__}: {error}")
    return _End(kind, error.exit_status, str(error))
