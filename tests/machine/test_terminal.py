"""How a process ends, and what it writes for the process that started it."""

import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from pspnet.errors import Busy, Problem, UserError
from pspnet.machine import terminal
from pspnet.machine.process import on_stop_request
from pspnet.machine.terminal import Tick
from tests.command import PSPNET, Done, call
from tests.raw.rawdata import write
from tests.waiting import wait_until

EXIT_FILE = "state/exit/work.json"


def run(body: Callable[[Tick], object], folder: Path) -> Done:
    """Run a command with one stage, `body`, as pspnet.cli would."""

    def command() -> None:
        with terminal.stage("work", Path(EXIT_FILE)) as tick:
            body(tick)

    return call(lambda: terminal.run(command), folder)


def script(body: str) -> list[str]:
    """The command line of a process that does the same."""
    indented = "\n".join(f"        {line}" for line in body.splitlines())
    code = f"""
import os, signal, time
from pathlib import Path
from pspnet.machine import terminal

def command():
    with terminal.stage("work", Path("{EXIT_FILE}")) as tick:
{indented}

terminal.run(command)
"""
    return [sys.executable, "-c", code]


def fail(error: BaseException) -> None:
    raise error


def send(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def stopped_by(number: int) -> Callable[[Tick], None]:
    def body(tick: Tick) -> None:
        send(number)
        tick(1, 2, "")

    return body


STOPPED = "Stopped. Nothing is half-written; run the same command to continue."
OutOfMemoryError = type("OutOfMemoryError", (RuntimeError,), {})  # as torch calls its own


@pytest.mark.parametrize(
    ("body", "kind", "status", "message"),
    [
        (lambda tick: tick(1, 1, ""), "done", 0, ""),
        (lambda tick: fail(UserError(Problem("params.yaml", "is wrong"))), "user", 1, "params.yaml: is wrong"),
        (lambda tick: fail(Busy("Somebody works here.")), "busy", 75, "Somebody works here."),
        (stopped_by(signal.SIGINT), "interrupted", 130, STOPPED),
        (stopped_by(signal.SIGTERM), "interrupted", 75, STOPPED),
        (lambda tick: send(signal.SIGINT, signal.SIGINT), "interrupted", 130, "Stopped at once."),
        (lambda tick: fail(MemoryError("a lot")), "memory", 1, "a lot"),
        (
            lambda tick: fail(OutOfMemoryError("CUDA out of memory")),
            "user",
            1,
            (
                "work: needs more memory than the device has. "
                "Lower work.batch_size or the size of its crops, or set runtime.precision: bf16."
            ),
        ),
        (lambda tick: 1 / 0, "bug", 1, "ZeroDivisionError: division by zero"),
    ],
    ids=["done", "user", "busy", "Ctrl-C", "SIGTERM", "Ctrl-C twice", "memory", "memory of the device", "bug"],
)
def test_a_stage_writes_why_it_ended(
    tmp_path: Path, body: Callable[[Tick], object], kind: str, status: int, message: str
) -> None:
    write(tmp_path / EXIT_FILE, '{"class": "of the run before"}')

    def checks_first(tick: Tick) -> None:
        print(Path(EXIT_FILE).exists())
        body(tick)

    done = run(checks_first, tmp_path)
    assert done.stdout == "False\n"  # otherwise a killed run would seem to have ended like the run before
    assert done.returncode == status
    assert json.loads((tmp_path / EXIT_FILE).read_text()) == {"class": kind, "exit": status, "message": message}
    assert ("Traceback" in done.stderr) == (kind in ("bug", "memory"))
    if kind in ("user", "busy"):
        assert done.stderr == message + "\n"
    if kind == "done":
        assert re.fullmatch(r"work: done in \d s\n", done.stderr)


@pytest.mark.e2e
def test_a_killed_stage_writes_no_exit_file(tmp_path: Path) -> None:
    write(tmp_path / EXIT_FILE, '{"class": "of the run before"}')
    done = subprocess.run(script("os.kill(os.getpid(), signal.SIGKILL)"), cwd=tmp_path, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / EXIT_FILE).exists()


def test_a_request_to_stop_waits_for_the_next_tick(tmp_path: Path) -> None:
    def body(tick: Tick) -> None:
        send(signal.SIGTERM)
        print("step done")
        tick(1, 2, "")
        print("never")

    assert run(body, tmp_path).stdout == "step done\n"


@pytest.mark.e2e
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_stopped_command_leaves_no_partial_folder(tmp_path: Path, number: int, status: int) -> None:
    command = [PSPNET, "synthesize", "raw", "--images", "1000000", "--labeled", "10"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        wait_until((tmp_path / "raw.partial/images/street00001_0.png").exists)
        process.send_signal(number)
        assert process.wait(timeout=60) == status
        assert process.stderr.read() == f"{STOPPED}\n"
    assert not (tmp_path / "raw").exists()


def test_without_a_terminal_progress_is_printed_as_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run resumed at image 1,000 measures its speed from there."""
    seconds = 0
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: seconds))

    def body(tick: Tick) -> None:
        nonlocal seconds
        for done in range(1000, 1601, 30):
            tick(done, 1600, "street[a]/1")
            seconds += 3

    assert terminal.LINE_SECONDS == 10
    assert run(body, tmp_path).stderr.splitlines() == [
        "work: 1,120/1,600, 10/s, 48 s left, street[a]/1",
        "work: 1,240/1,600, 10/s, 36 s left, street[a]/1",
        "work: 1,360/1,600, 10/s, 24 s left, street[a]/1",
        "work: 1,480/1,600, 10/s, 12 s left, street[a]/1",
        "work: 1,600/1,600, 10/s, 0 s left, street[a]/1",
        "work: done in 63 s",
    ]


@pytest.mark.e2e
def test_a_terminal_shows_a_bar(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    shown = b""

    def text() -> str:
        nonlocal shown
        while select.select([ours], [], [], 0)[0]:
            try:
                shown += os.read(ours, 2**16)
            except OSError:  # how Linux says that the other end is closed
                break
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode(errors="replace"))

    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    command = script("for done in range(1, 4): tick(done, 3, 'street[a]/1'); input()")
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdin=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        assert process.stdin
        for count in ("1/3", "2/3", "3/3"):
            wait_until(lambda: count in text(), otherwise=text)  # noqa: B023
            process.stdin.write(b"\n")
            process.stdin.flush()
        assert process.wait(timeout=60) == 0
    assert "street[a]/1" in text()
    assert re.search(r"work: done in \d+ s", text())
    os.close(ours)


WORKER = """
import signal, time
from pspnet.machine.process import die_with_parent
die_with_parent(signal.SIGKILL)
print("ready", flush=True)
time.sleep(250)
"""
CHILDREN = {
    "a stage": script("print('ready', flush=True)\nfor _ in range(5000): time.sleep(0.05); tick(1, 2, '')"),
    "a loader worker": [sys.executable, "-c", WORKER],
}
CHILDREN["a stage in a shell"] = ["/bin/sh", "-c", f"{shlex.join(CHILDREN['a stage'])}; exit"]


@pytest.mark.e2e
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can promise it")
@pytest.mark.parametrize("child", CHILDREN)
def test_a_child_ends_with_its_parent(tmp_path: Path, child: str) -> None:
    environment = "os.environ | {'DVC_STAGE': 'a stage'}"  # as DVC sets it; a run by hand may outlive its terminal
    parent = f"import os, subprocess; subprocess.run({CHILDREN[child]!r}, env={environment})"
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.wait()
    # The pipe closes with the last process that could write into it; on its own, the child lives for 250 s.
    assert select.select([process.stdout], [], [], 120)[0]
    assert process.stdout.read() == ""
    process.stdout.close()
    if "stage" in child:
        assert json.loads((tmp_path / EXIT_FILE).read_text())["class"] == "interrupted"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_request_is_handled_only_within_the_block(number: int) -> None:
    received: list[int] = []
    before = signal.getsignal(number)
    with on_stop_request(lambda number, _: received.append(number)):
        os.kill(os.getpid(), number)
    assert received == [number]
    assert signal.getsignal(number) == before
