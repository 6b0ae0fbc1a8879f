"""A command's behavior toward the person or program that runs it: progress, Ctrl-C, errors and exit status."""

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

from pspnet.errors import EXIT_CTRL_C, EXIT_TEMPORARY, Busy, Interrupted, Problem, PspnetError, UserError, is_network
from pspnet.machine.credentials import hidden
from pspnet.machine.outputs import user_error_for, whole_file
from pspnet.machine.process import die_with_launcher, end_with_dvc, on_stop_request, ranks
from pspnet.printable import printable, printable_lines

Tick = Callable[[int, int, str], None]


class _Console(Console):
    """A console whose text cannot act on the terminal, even if it contains hostile file names."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable_lines(text), **options)


out = _Console(highlight=False, soft_wrap=True)
err = _Console(highlight=False, soft_wrap=True, stderr=True)

LINE_SECONDS = 10  # between progress lines without a terminal
LONGEST_LINE = 300


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")


@contextmanager
def progress(title: str) -> Iterator[Tick]:
    """Show a bar with rate and time left, or lines if there is no terminal. Ctrl-C takes effect at the next tick."""
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
    """Collect the exit statuses that signals ask for. A second Ctrl-C stops at once."""
    requested: list[int] = []

    def request(number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        requested.append(EXIT_CTRL_C if number == signal.SIGINT else EXIT_TEMPORARY)

    with on_stop_request(request):
        yield requested


@contextmanager
def stage(name: str, exit_file: Path) -> Iterator[Tick]:
    """Run a stage. It ends with its parent, and writes why it ended to `exit_file`: DVC's exit status is always 255."""
    if ranks() > 1:
        die_with_launcher()
    else:
        end_with_dvc()  # only under DVC: a run by hand may outlive its terminal
    exit_file.unlink(missing_ok=True)  # a stage without an exit file was killed
    started = time.monotonic()
    try:
        with progress(name) as tick:
            yield tick
    except BaseException as error:
        reported = user_error_for(error) or error
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
            reported = _out_of_memory(name)
        _write_exit(exit_file, *_reason(reported))
        if reported is error:
            raise
        raise reported from error
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
    """Run a command and exit with its status. A user's mistake prints a message; a bug prints a traceback."""
    try:
        command()
    except PspnetError as error:
        err.print(str(error), style="yellow" if isinstance(error, Interrupted) else "red", markup=False)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        err.print("Stopped.", style="yellow")
        sys.exit(EXIT_CTRL_C)
    except Exception as error:
        if mistake := user_error_for(error):
            err.print(str(mistake), style="red", markup=False)
            sys.exit(mistake.exit_status)
        if not is_network(error):
            raise
        last = (str(error) or type(error).__name__).splitlines()[0][:LONGEST_LINE]
        err.print(f"A connection failed ({last}). Try again when it is back.", style="red", markup=False)
        sys.exit(EXIT_TEMPORARY)
