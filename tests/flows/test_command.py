import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from flows import command as commands
from flows.command import CommandResult, marked
from pspnet.machine.events import Event
from tests.flows.processes import kill_all, left
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

TEST = "PSPNET_TEST"
FOREVER = 60
LIMIT = 3600.0  # only the clock below reaches this limit
READY = "ready"
PROGRESS = '{"kind": "progress", "time": 1, "title": "work", "done": 3, "total": 4, "note": ""}'
RESULT = '{"kind": "result", "time": 0, "version": 1}'
END = '{"kind": "exit", "time": 9, "class": "user", "status": 1, "message": "said"}'


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(commands, "DRAIN_SECONDS", 0.2)
    monkeypatch.setattr(commands, "STOP_SECONDS", 0.2)


@pytest.fixture(autouse=True)
def _nothing_left(tmp_path: Path) -> Iterator[None]:
    yield
    kill_all(tmp_path)


class Clock:
    """The clock of `flows.command`. It runs like the real clock until a test advances it past the limit."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ahead = 0.0
        monkeypatch.setattr(commands, "time", SimpleNamespace(monotonic=self.monotonic))

    def monotonic(self) -> float:
        return time.monotonic() + self._ahead

    def pass_limit(self) -> None:
        self._ahead += LIMIT

    def pass_limit_once_ready(self, line: str) -> None:
        if line == READY:
            self.pass_limit()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


Bash = Callable[..., CommandResult]


@pytest.fixture
def bash(tmp_path: Path) -> Bash:
    def run(
        script: str, timeout_seconds: float | None = None, on_line: Callable[[str], object] = lambda _: None
    ) -> CommandResult:
        return commands.run(["bash", "-c", script], tmp_path, os.environ | {TEST: "given"}, on_line, timeout_seconds)

    return run


def test_lines_arrive_in_order_while_the_command_runs(bash: Bash, tmp_path: Path) -> None:
    lines: list[str] = []

    def on_line(line: str) -> None:
        lines.append(line)
        if line == "two":
            (tmp_path / "go-on").touch()  # the command waits for this file: buffered lines would arrive too late

    began = time.monotonic()
    ended = bash("echo one; echo two >&2; until [ -e go-on ]; do sleep 0.01; done; echo three", on_line=on_line)
    assert lines == ["one", "two", "three"]
    assert (ended.status, ended.timed_out, ended.output) == (0, False, "one\ntwo\nthree")
    assert 0 < ended.seconds <= time.monotonic() - began


def test_a_command_gets_its_folder_its_environment_and_an_empty_input(bash: Bash, tmp_path: Path) -> None:
    ended = bash(f'pwd; echo "${TEST}"; read -r line || echo "nothing to read"')
    assert ended.output.splitlines() == [str(tmp_path), "given", "nothing to read"]


def test_progress_is_read_while_the_command_runs(tmp_path: Path) -> None:
    told: list[Event] = []

    def on_progress(event: Event) -> None:
        told.append(event)
        (tmp_path / "go-on").touch()  # the command waits for this file

    script = f"""echo '{PROGRESS}' >> "$PSPNET_EVENTS"; until [ -e go-on ]; do sleep 0.01; done"""
    ended = commands.run(["bash", "-c", script], tmp_path, os.environ, print, on_progress=on_progress)
    assert [event["done"] for event in told] == [3]
    assert ended.events == []


def test_results_and_the_exit_event_are_read_after_the_command_has_ended(bash: Bash, tmp_path: Path) -> None:
    lines = [RESULT.replace("1", number) for number in "56"] + [END, '{"kind": "exit", "time": 2, "rank": 1}', "torn"]
    ended = bash("\n".join(f"""echo '{line}' >> "$PSPNET_EVENTS\"""" for line in lines))
    assert ended.result["version"] == 6
    assert ended.end == json.loads(END)
    assert list((tmp_path / ".pspnet/events").iterdir()) == []


def test_a_log_that_a_journal_names_is_kept(bash: Bash, tmp_path: Path) -> None:
    bash("""echo '{"kind": "begin", "time": 1}' >> "$PSPNET_EVENTS\"""")
    assert len(list((tmp_path / ".pspnet/events").iterdir())) == 1


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("kill -KILL $$", -9), ("true", 0)])
def test_the_exit_status_is_returned(bash: Bash, script: str, status: int) -> None:
    assert bash(script).status == status


def test_lines_printed_just_before_the_end_are_read(bash: Bash) -> None:
    lines: list[str] = []

    def slowly(line: str) -> None:
        time.sleep(0.001)  # 500 lines take longer than DRAIN_SECONDS
        lines.append(line)

    ended = bash("seq 500", on_line=slowly)
    assert lines == [str(number) for number in range(1, 501)]
    assert ended.output.splitlines() == lines[-commands.LAST_LINES :]


def test_all_lines_are_read_even_if_a_process_outlives_the_command(bash: Bash) -> None:
    lines: list[str] = []

    def slowly(line: str) -> None:
        time.sleep(0.001)
        lines.append(line)

    bash(f"seq 500; sleep {FOREVER} &", on_line=slowly)
    assert lines == [str(number) for number in range(1, 501)]


def test_invalid_utf8_is_replaced(bash: Bash) -> None:
    assert (
        bash(r"printf 'caf\351 \377\n\303\244\n'").output == "caf\N{REPLACEMENT CHARACTER} \N{REPLACEMENT CHARACTER}\nä"
    )


@pytest.mark.parametrize(
    "script",
    [
        f"echo {READY}; sleep {FOREVER}",
        f"sleep {FOREVER} & echo {READY}; wait",
        f"setsid sleep {FOREVER} & echo {READY}; sleep {FOREVER}",
        f"setsid bash -c 'sleep {FOREVER} & echo {READY}; sleep {FOREVER}' & wait",
        f"trap '' TERM; sleep {FOREVER} & echo {READY}; while true; do sleep 0.1; done",
        f"echo {READY}; while true; do echo talks all the time; done",
        f"echo {READY}; exec >&- 2>&-; sleep {FOREVER}",
        # Nothing in the environment of this process marks it.
        f"env -i bash -c 'echo {READY}; exec sleep {FOREVER}'; true",
        f"echo {READY}; kill -STOP $$",
    ],
    ids=["one", "background", "own-session", "deeper", "ignores-sigterm", "talks", "closed-pipe", "unmarked", "frozen"],
)
def test_a_timeout_leaves_no_process(bash: Bash, tmp_path: Path, clock: Clock, script: str) -> None:
    ended = bash(script, LIMIT, clock.pass_limit_once_ready)
    assert ended.timed_out
    assert LIMIT < ended.seconds < LIMIT + FOREVER
    assert ended.status < 0
    assert left(tmp_path) == []


def test_a_timeout_lets_the_command_save_its_work(bash: Bash, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training uses this time to save a checkpoint."""
    monkeypatch.setattr(commands, "STOP_SECONDS", FOREVER)
    script = f'trap "touch saved; exit 75" TERM; echo {READY}; while true; do sleep 0.05; done'
    ended = bash(script, LIMIT, clock.pass_limit_once_ready)
    assert (ended.timed_out, ended.status) == (True, 75)


def test_a_command_that_ended_in_time_has_not_timed_out(bash: Bash, clock: Clock) -> None:
    lines: list[str] = []
    others = psutil.Process().children()

    def has_ended() -> bool:
        """Return whether every child is a zombie. A process that is about to end can no longer be
        found by its folder.
        """
        own = [one for one in psutil.Process().children() if one not in others]
        return all(one.status() == psutil.STATUS_ZOMBIE for one in own)

    def slowly(line: str) -> None:
        """Read more slowly than the command writes."""
        wait_until(has_ended)
        clock.pass_limit()
        lines.append(line)

    ended = bash("seq 3", LIMIT, slowly)
    assert (ended.timed_out, ended.status, lines) == (False, 0, ["1", "2", "3"])


@pytest.mark.parametrize("script", [f"sleep {FOREVER}", "while true; do echo talks; done"], ids=["silent", "talks"])
def test_a_leftover_process_that_holds_the_pipe_is_ended(bash: Bash, tmp_path: Path, script: str) -> None:
    lines: list[str] = []
    ended = bash(f"echo one; setsid bash -c '{script}' & echo two; exit 3", on_line=lines.append)
    assert (ended.status, ended.timed_out) == (3, False)
    assert ended.seconds < FOREVER
    assert {"one", "two"} <= set(lines)
    assert left(tmp_path) == []


def test_a_leftover_process_that_does_not_hold_the_pipe_is_ended(bash: Bash, tmp_path: Path) -> None:
    assert bash(f"setsid sleep {FOREVER} >/dev/null 2>&1 & echo $!").status == 0
    assert left(tmp_path) == []


def test_an_error_in_the_callback_ends_the_command(bash: Bash, tmp_path: Path) -> None:
    def on_line(line: str) -> None:
        raise ValueError(line)

    with pytest.raises(ValueError, match="one"):
        bash(f"sleep {FOREVER} & echo one; wait", on_line=on_line)
    assert left(tmp_path) == []


def test_ctrl_c_ends_the_command(bash: Bash, tmp_path: Path) -> None:
    def on_line(line: str) -> None:
        threading.Thread(target=interrupt).start()

    with pytest.raises(KeyboardInterrupt):
        bash(f"setsid sleep {FOREVER} & echo one; sleep {FOREVER}", on_line=on_line)
    assert left(tmp_path) == []


def test_a_second_ctrl_c_stops_without_waiting(bash: Bash, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "STOP_SECONDS", 10 * FOREVER)
    asked = tmp_path / "asked-to-end"

    def twice() -> None:
        interrupt()
        wait_until(asked.exists)
        interrupt()

    def on_line(line: str) -> None:
        threading.Thread(target=twice).start()

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        bash(f"trap 'touch {asked}' TERM; sleep {FOREVER} & echo one; while true; do sleep 0.1; done", on_line=on_line)
    assert time.monotonic() - started < FOREVER
    assert left(tmp_path) == []


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_a_missing_command_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        commands.run(["no-such-command"], tmp_path, os.environ, print)


def test_marked_finds_only_processes_other_than_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TEST, str(tmp_path))
    process = psutil.Popen(["sleep", str(FOREVER)])
    try:
        found = wait_until(lambda: marked(TEST, str(tmp_path)))  # a process that is starting has no environment yet
        assert found == [process]
        assert marked(TEST, "other") == []
        process.kill()
        wait_until(lambda: process.status() == psutil.STATUS_ZOMBIE)
        assert marked(TEST, str(tmp_path)) == []
    finally:
        process.kill()
        process.wait()
