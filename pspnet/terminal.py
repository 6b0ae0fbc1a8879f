"""How a command behaves towards the person (or the program) that runs it: progress, Ctrl-C, errors, exit status."""

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from pspnet.credentials import hidden
from pspnet.errors import EXIT_CTRL_C, EXIT_TEMPORARY, Busy, Interrupted, Problem, PspnetError, UserError, is_network
from pspnet.outputs import mistake_of, whole_file
from pspnet.printable import printable, printable_lines
from pspnet.process import die_with_launcher, end_with_dvc, on_stop_request, ranks

Tick = Callable[[int, int, str], None]


class _Console(Console):
    """What it is given cannot act on the terminal, whatever names of files are in it."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable_lines(text), **options)


out = _Console(highlight=False, soft_wrap=True)
err = _Console(highlight=False, soft_wrap=True, stderr=True)

LINE_SECONDS = 10  # between two lines where there is no terminal
LONGEST_LINE = 300


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")


@contextmanager
def progress(title: str) -> Iterator[Tick]:
    """A bar with rate and time left; without a terminal, a line now and then. Its tick is where Ctrl-C takes effect."""
    with _stop_requests() as requested, _bar(title) if err.is_terminal else _lines(title) as show:

        def tick(done: int, total: int, note: str) -> None:
            show(done, total, printable(note))
            if requested:
                raise Interrupted(requested[0])

        yield tick


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
    """Collects exit statuses that signals ask for. A second Ctrl-C does not wait for a good moment."""
    requested: list[int] = []

    def request(number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        requested.append(EXIT_CTRL_C if number == signal.SIGINT else EXIT_TEMPORARY)

    with on_stop_request(request):
        yield requested


@contextmanager
def stage(name: str, exit_file: Path) -> Iterator[Tick]:
    """A stage as a process: ends with its parent, and leaves behind why it ended, since DVC's status is always 255."""
    if ranks() > 1:
        die_with_launcher()
    else:
        end_with_dvc()  # a person's own run may outlive the terminal it was started in
    exit_file.unlink(missing_ok=True)  # none left behind: killed
    started = time.monotonic()
    try:
        with progress(name) as tick:
            yield tick
    except BaseException as error:
        told = mistake_of(error) or error
        if type(error).__name__ == "OutOfMemoryError":  # torch's, not imported here
            told = _out_of_memory(name)
        _write_exit(exit_file, *_reason(told))
        if told is error:
            raise
        raise told from error
    _write_exit(exit_file, "done", 0, "")
    err.print(f"[bold]{name}[/]: done in {time.monotonic() - started:.0f} s")


def _out_of_memory(name: str) -> UserError:
    fix = f"Lower {name}.batch_size or the size of its crops, or set runtime.precision: bf16."
    return UserError(Problem(name, "needs more memory than the device has", fix=fix))


def _reason(error: BaseException) -> tuple[str, int, str]:
    match error:
        case Busy():
            return "busy", error.exit_status, str(error)
        case Interrupted():
            return "interrupted", error.exit_status, str(error)
        case PspnetError():
            return "user", error.exit_status, str(error)
        case KeyboardInterrupt():
            return "interrupted", EXIT_CTRL_C, "Stopped at once."
        case MemoryError():
            return "memory", 1, str(error)
        case _:
            return "bug", 1, f"{type(error).__name__}: {error}"


def _write_exit(path: Path, kind: str, status: int, message: str) -> None:
    with whole_file(path) as partial:
        partial.write_text(
            json.dumps({"class": kind, "exit": status, "message": hidden(message)}) + "\n", encoding="utf-8"
        )


def run(command: Callable[[], object]) -> None:
    """Run a command; a mistake is a message, a bug is a traceback."""
    try:
        command()
    except PspnetError as error:
        err.print(str(error), style="yellow" if isinstance(error, Interrupted) else "red", markup=False)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        err.print("Stopped.", style="yellow")
        sys.exit(EXIT_CTRL_C)
    except Exception as error:
        if told := mistake_of(error):
            err.print(str(told), style="red", markup=False)
            sys.exit(told.exit_status)
        if not is_network(error):
            raise
        last = (str(error) or type(error).__name__).splitlines()[0][:LONGEST_LINE]
        err.print(f"A connection was lost ({last}). Try again when it is back.", style="red", markup=False)
        sys.exit(EXIT_TEMPORARY)
