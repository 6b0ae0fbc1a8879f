"""How a process ends, and what it leaves behind for the one that started it."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.command import PSPNET
from tests.dataset.rawdata import write

EXIT_FILE = "state/exit/work.json"


def script(body: str) -> list[str]:
    """A command whose one stage does `body`, as pspnet/cli.py would run it."""
    indented = "\n".join(f"        {line}" for line in body.splitlines())
    code = f"""
import os, signal, sys, time
from pathlib import Path
from pspnet import terminal
from pspnet.errors import Busy, Problem, UserError

def command():
    with terminal.stage("work", Path("{EXIT_FILE}")) as tick:
{indented}

terminal.run(command)
"""
    return [sys.executable, "-c", code]


def run(body: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(script(body), cwd=folder, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("body", "kind", "status", "message"),
    [
        ("tick(1, 1, '')", "done", 0, ""),
        ("raise UserError(Problem('params.yaml', 'is wrong'))", "user", 1, "params.yaml: is wrong"),
        ("raise Busy('Somebody works here.')", "busy", 75, "Somebody works here."),
        (
            "os.kill(os.getpid(), signal.SIGINT); tick(1, 2, '')",
            "interrupted",
            130,
            "Stopped. Nothing is half-written; start it again as it was.",
        ),
        (
            "os.kill(os.getpid(), signal.SIGTERM); tick(1, 2, '')",
            "interrupted",
            75,
            "Stopped. Nothing is half-written; start it again as it was.",
        ),
        ("[os.kill(os.getpid(), signal.SIGINT) for _ in range(2)]", "interrupted", 130, "Stopped at once."),
        ("raise MemoryError('a lot')", "memory", 1, "a lot"),
        (
            "raise type('OutOfMemoryError', (RuntimeError,), {})('CUDA out of memory')",
            "user",
            1,
            (
                "work: needs more memory than the device has. "
                "Lower work.batch_size or the size of its crops, or set runtime.precision: bf16."
            ),
        ),
        ("1 / 0", "bug", 1, "ZeroDivisionError: division by zero"),
    ],
    ids=["done", "user", "busy", "Ctrl-C", "SIGTERM", "Ctrl-C twice", "memory", "memory of the device", "bug"],
)
def test_a_stage_leaves_behind_why_it_ended(tmp_path: Path, body: str, kind: str, status: int, message: str) -> None:
    write(tmp_path / EXIT_FILE, '{"class": "of the run before"}')
    done = run(f"print(os.path.exists('{EXIT_FILE}'))\n{body}", tmp_path)
    assert done.stdout == "False\n"  # a run that is killed must not seem to have ended like the one before
    assert done.returncode == status
    assert json.loads((tmp_path / EXIT_FILE).read_text()) == {"class": kind, "exit": status, "message": message}
    assert ("Traceback" in done.stderr) == (kind in ("bug", "memory"))
    if kind in ("user", "busy"):
        assert done.stderr == message + "\n"
    if kind == "done":
        assert re.fullmatch(r"work: done in \d s\n", done.stderr)


def test_a_stage_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path / EXIT_FILE, '{"class": "of the run before"}')
    assert run("os.kill(os.getpid(), signal.SIGKILL)", tmp_path).returncode == -signal.SIGKILL
    assert not (tmp_path / EXIT_FILE).exists()


def test_a_request_to_stop_waits_for_the_next_tick(tmp_path: Path) -> None:
    body = "os.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(0.1)\nprint('step done')\ntick(1, 2, '')\nprint('never')"
    assert run(body, tmp_path).stdout == "step done\n"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_command_that_is_stopped_leaves_no_half_folder(tmp_path: Path, number: int, status: int) -> None:
    command = [PSPNET, "synthesize", "raw", "--images", "1000000", "--labelled", "10"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        wait_for(tmp_path / "raw.partial/images/street00001_0.png")
        process.send_signal(number)
        assert process.wait(timeout=60) == status
        assert process.stderr.read() == "Stopped. Nothing is half-written; start it again as it was.\n"
    assert not (tmp_path / "raw").exists()


def wait_for(path: Path, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"no {path} after {seconds} seconds"
        time.sleep(0.02)


def test_without_a_terminal_there_is_a_line_now_and_then(tmp_path: Path) -> None:
    """A run that goes on at image 1,000 counts its speed from there."""
    body = """
terminal.LINE_SECONDS = 0.4
for done in range(1000, 1021):
    tick(done, 1020, "street[a]/1")
    time.sleep(0.05)
"""
    *lines, last = run(body, tmp_path).stderr.splitlines()
    assert re.fullmatch(r"work: done in \d s", last)
    assert 1 <= len(lines) < 10
    for line in lines:
        found = re.fullmatch(r"work: 1,0(\d\d)/1,020, (\d+)/s, (\d+) s left, street\[a\]/1", line)
        assert found, line
        assert int(found[2]) <= 20
        assert int(found[3]) < 10


def test_in_a_terminal_there_is_a_bar(tmp_path: Path) -> None:
    body = "for done in range(1, 4): tick(done, 3, 'street[a]/1'); time.sleep(0.15)"
    ours, theirs = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(script(body), cwd=tmp_path, env=environment, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 2**16):
                shown += piece
        except OSError:  # how Linux says that the other end is closed
            pass
        os.close(ours)
        assert process.wait(timeout=30) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "2/3" in text
    assert "street[a]/1" in text
    assert re.search(r"work: done in \d s", text)


WORKER = """
import signal, time
from pspnet.process import die_with_parent
die_with_parent(signal.SIGKILL)
print("ready", flush=True)
time.sleep(20)
"""
CHILDREN = {
    "a stage": script("print('ready', flush=True)\nfor _ in range(400): time.sleep(0.05); tick(1, 2, '')"),
    "a loader worker": [sys.executable, "-c", WORKER],
}
CHILDREN["a stage in a shell"] = ["/bin/sh", "-c", f"{shlex.join(CHILDREN['a stage'])}; exit"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can promise it")
@pytest.mark.parametrize("child", CHILDREN)
def test_who_depends_on_a_parent_ends_with_it(tmp_path: Path, child: str) -> None:
    environment = "os.environ | {'DVC_STAGE': 'a stage'}"  # as DVC sets it; a person's own run may outlive a terminal
    parent = f"import os, subprocess; subprocess.run({CHILDREN[child]!r}, env={environment})"
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.wait()
    started = time.monotonic()
    assert process.stdout.read() == ""  # the pipe ends when the last process that could write into it has
    assert time.monotonic() - started < 15  # alone it lives for 20
    process.stdout.close()
    if "stage" in child:
        assert json.loads((tmp_path / EXIT_FILE).read_text())["class"] == "interrupted"
