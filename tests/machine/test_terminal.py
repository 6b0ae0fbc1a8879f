"""How a process ends, and what it writes for the process that started it."""

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
from pspnet.machine.events import VARIABLE, read
from pspnet.machine.process import on_stop_request
from pspnet.machine.terminal import Tick
from tests.command import PSPNET, Done, call
from tests.waiting import wait_until

LOG = "log.jsonl"


def run(body: Callable[[Tick], object], folder: Path) -> Done:
    """Run a command with `body` as its only stage, as pspnet.cli would."""

    def command() -> None:
        os.environ[VARIABLE] = LOG
        with terminal.stage("work") as tick:
            body(tick)

    return call(lambda: terminal.run(command), folder)


def exits(folder: Path) -> list[tuple[str, int, str]]:
    """Return the class, status and message of each exit event."""
    told = [event for event, _ in read(folder / LOG) if event["kind"] == "exit"]
    return [(event["class"], event["status"], event["message"]) for event in told]


def script(body: str) -> list[str]:
    """Return the command line of a process that does the same as `run`."""
    indented = "\n".join(f"        {line}" for line in body.splitlines())
    code = f"""
import os, signal, time
from pspnet.machine import terminal

os.environ["{VARIABLE}"] = "{LOG}"

def command():
    with terminal.stage("work") as tick:
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
OutOfMemoryError = type("OutOfMemoryError", (RuntimeError,), {})  # the name that torch uses for its own error


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
def test_a_command_reports_why_it_ended(
    tmp_path: Path, body: Callable[[Tick], object], kind: str, status: int, message: str
) -> None:
    done = run(body, tmp_path)
    assert done.returncode == status
    assert exits(tmp_path) == [(kind, status, message)]
    assert ("Traceback" in done.stderr) == (kind in ("bug", "memory"))
    if kind in ("user", "busy"):
        assert done.stderr == message + "\n"
    if kind == "done":
        assert re.fullmatch(r"work: done in \d s\n", done.stderr)


def test_a_command_that_typer_ends_reports_that_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / LOG))
    for status in (1, 0):
        with pytest.raises(SystemExit):
            terminal.run(lambda: sys.exit(status))  # noqa: B023
    assert exits(tmp_path) == [("done", 0, "")]


@pytest.mark.e2e
def test_a_killed_command_reports_no_exit(tmp_path: Path) -> None:
    done = subprocess.run(script("tick(1, 2, ''); os.kill(os.getpid(), signal.SIGKILL)"), cwd=tmp_path, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [event["kind"] for event, _ in read(tmp_path / LOG)] == ["progress"]


def test_progress_is_reported_every_few_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = 100
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: seconds))

    def body(tick: Tick) -> None:
        nonlocal seconds
        for done in range(1, 7):
            tick(done, 6, f"street[a]/{done}")
            seconds += 1

    run(body, tmp_path)
    assert terminal.EVENT_SECONDS == 2
    told = [event for event, _ in read(tmp_path / LOG) if event["kind"] == "progress"]
    assert [(event["title"], event["done"], event["total"], event["note"]) for event in told] == [
        ("work", done, 6, f"street[a]/{done}") for done in (1, 3, 5)
    ]


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
    """If a run is resumed at image 1,000, its speed is measured from there."""
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
            except OSError:  # Linux reports in this way that the other end is closed
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
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can guarantee this")
@pytest.mark.parametrize("child", CHILDREN)
def test_a_child_ends_with_its_parent(tmp_path: Path, child: str) -> None:
    # DVC sets this variable; a manual run may outlive its terminal.
    environment = "os.environ | {'DVC_STAGE': 'a stage'}"
    parent = f"import os, subprocess; subprocess.run({CHILDREN[child]!r}, env={environment})"
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.wait()
    # The pipe closes when the last process that can write to it ends. If nothing ended the child, it would
    # live for 250 s.
    assert select.select([process.stdout], [], [], 120)[0]
    assert process.stdout.read() == ""
    process.stdout.close()
    if "stage" in child:
        assert [kind for kind, _, _ in exits(tmp_path)] == ["interrupted"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_request_is_handled_only_within_the_block(number: int) -> None:
    received: list[int] = []
    before = signal.getsignal(number)
    with on_stop_request(lambda number, _: received.append(number)):
        os.kill(os.getpid(), number)
    assert received == [number]
    assert signal.getsignal(number) == before


@pytest.mark.e2e
def test_a_process_with_an_optimizer_ends_without_a_leak_report() -> None:
    """torch loads triton for an optimizer, and triton's binding prints at exit what has not been freed."""
    code = (
        "from pspnet.machine.process import collect_less_garbage as rarely; rarely(); import torch;"
        "layer = torch.nn.Linear(1, 1); torch.optim.AdamW(layer.parameters())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
