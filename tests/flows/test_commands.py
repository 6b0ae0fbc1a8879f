import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from flows import commands
from flows.commands import Ended, marked
from tests.flows.processes import kill_all, left
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

TEST = "PSPNET_TEST"
FOREVER = 60
LIMIT = 3600.0  # which only the clock below passes
READY = "ready"


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(commands, "DRAIN_SECONDS", 0.2)
    monkeypatch.setattr(commands, "STOP_SECONDS", 0.2)


@pytest.fixture(autouse=True)
def _nothing_left(tmp_path: Path) -> Iterator[None]:
    yield
    kill_all(tmp_path)


class Clock:
    """The clock of `flows.commands`, which goes with ours until it passes the limit at a word."""

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


Bash = Callable[..., Ended]


@pytest.fixture
def bash(tmp_path: Path) -> Bash:
    def run(script: str, timeout_seconds: float | None = None, tell: Callable[[str], object] = lambda _: None) -> Ended:
        return commands.run(["bash", "-c", script], tmp_path, os.environ | {TEST: "given"}, tell, timeout_seconds)

    return run


def test_lines_come_in_order_while_it_runs(bash: Bash, tmp_path: Path) -> None:
    told: list[str] = []

    def tell(line: str) -> None:
        told.append(line)
        if line == "two":
            (tmp_path / "go-on").touch()  # it waits for this: lines that were kept back would come too late

    began = time.monotonic()
    ended = bash("echo one; echo two >&2; until [ -e go-on ]; do sleep 0.01; done; echo three", tell=tell)
    assert told == ["one", "two", "three"]
    assert (ended.status, ended.timed_out, ended.output) == (0, False, "one\ntwo\nthree")
    assert 0 < ended.seconds <= time.monotonic() - began


def test_it_runs_in_the_folder_with_the_environment_and_nothing_to_read(bash: Bash, tmp_path: Path) -> None:
    ended = bash(f'pwd; echo "${TEST}"; read -r line || echo "nothing to read"')
    assert ended.output.splitlines() == [str(tmp_path), "given", "nothing to read"]


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("kill -KILL $$", -9), ("true", 0)])
def test_the_exit_status_is_the_commands(bash: Bash, script: str, status: int) -> None:
    assert bash(script).status == status


def test_all_that_a_command_says_as_it_ends_is_told(bash: Bash) -> None:
    told: list[str] = []

    def slowly(line: str) -> None:
        time.sleep(0.001)  # 500 lines take longer than what it leaves behind is waited for
        told.append(line)

    ended = bash("seq 500", tell=slowly)
    assert told == [str(number) for number in range(1, 501)]
    assert ended.output.splitlines() == told[-commands.LAST_LINES :]


def test_all_is_told_also_when_something_is_left_behind(bash: Bash) -> None:
    told: list[str] = []

    def slowly(line: str) -> None:
        time.sleep(0.001)
        told.append(line)

    bash(f"seq 500; sleep {FOREVER} &", tell=slowly)
    assert told == [str(number) for number in range(1, 501)]


def test_bytes_that_are_no_text_are_shown_as_such(bash: Bash) -> None:
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
        f"env -i bash -c 'echo {READY}; exec sleep {FOREVER}'; true",  # it has no mark
        f"echo {READY}; kill -STOP $$",
    ],
    ids=["one", "background", "own-session", "deeper", "ignores-sigterm", "talks", "closed-pipe", "unmarked", "frozen"],
)
def test_a_timeout_leaves_nothing(bash: Bash, tmp_path: Path, clock: Clock, script: str) -> None:
    ended = bash(script, LIMIT, clock.pass_limit_once_ready)
    assert ended.timed_out
    assert LIMIT < ended.seconds < LIMIT + FOREVER
    assert ended.status < 0
    assert left(tmp_path) == []


def test_a_timeout_lets_it_end_by_itself(bash: Bash, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training saves a checkpoint."""
    monkeypatch.setattr(commands, "STOP_SECONDS", FOREVER)
    script = f'trap "touch saved; exit 75" TERM; echo {READY}; while true; do sleep 0.05; done'
    ended = bash(script, LIMIT, clock.pass_limit_once_ready)
    assert (ended.timed_out, ended.status) == (True, 75)


def test_what_ended_in_time_has_not_timed_out(bash: Bash, clock: Clock) -> None:
    told: list[str] = []
    others = psutil.Process().children()

    def has_ended() -> bool:
        """Whoever waits for it now is told at once; one that is about to end shows in no folder any more."""
        own = [one for one in psutil.Process().children() if one not in others]
        return all(one.status() == psutil.STATUS_ZOMBIE for one in own)

    def slowly(line: str) -> None:
        """It takes us longer to read than it to say."""
        wait_until(has_ended)
        clock.pass_limit()
        told.append(line)

    ended = bash("seq 3", LIMIT, slowly)
    assert (ended.timed_out, ended.status, told) == (False, 0, ["1", "2", "3"])


@pytest.mark.parametrize("script", [f"sleep {FOREVER}", "while true; do echo talks; done"], ids=["silent", "talks"])
def test_a_process_left_behind_with_the_pipe_is_ended_soon(bash: Bash, tmp_path: Path, script: str) -> None:
    told: list[str] = []
    ended = bash(f"echo one; setsid bash -c '{script}' & echo two; exit 3", tell=told.append)
    assert (ended.status, ended.timed_out) == (3, False)
    assert ended.seconds < FOREVER
    assert {"one", "two"} <= set(told)
    assert left(tmp_path) == []


def test_a_process_left_behind_without_the_pipe_is_ended(bash: Bash, tmp_path: Path) -> None:
    assert bash(f"setsid sleep {FOREVER} >/dev/null 2>&1 & echo $!").status == 0
    assert left(tmp_path) == []


def test_an_error_of_who_reads_ends_it(bash: Bash, tmp_path: Path) -> None:
    def tell(line: str) -> None:
        raise ValueError(line)

    with pytest.raises(ValueError, match="one"):
        bash(f"sleep {FOREVER} & echo one; wait", tell=tell)
    assert left(tmp_path) == []


def test_ctrl_c_ends_it(bash: Bash, tmp_path: Path) -> None:
    def tell(line: str) -> None:
        threading.Thread(target=interrupt).start()

    with pytest.raises(KeyboardInterrupt):
        bash(f"setsid sleep {FOREVER} & echo one; sleep {FOREVER}", tell=tell)
    assert left(tmp_path) == []


def test_a_second_ctrl_c_waits_for_nothing(bash: Bash, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "STOP_SECONDS", 10 * FOREVER)
    asked = tmp_path / "asked-to-end"

    def twice() -> None:
        interrupt()
        wait_until(asked.exists)
        interrupt()

    def tell(line: str) -> None:
        threading.Thread(target=twice).start()

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        bash(f"trap 'touch {asked}' TERM; sleep {FOREVER} & echo one; while true; do sleep 0.1; done", tell=tell)
    assert time.monotonic() - started < FOREVER
    assert left(tmp_path) == []


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_a_command_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        commands.run(["no-such-command"], tmp_path, os.environ, print)


def test_others_with_a_mark_are_found_and_we_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TEST, str(tmp_path))
    process = psutil.Popen(["sleep", str(FOREVER)])
    try:
        found = wait_until(lambda: marked(TEST, str(tmp_path)))  # for a moment it has no environment
        assert found == [process]
        assert marked(TEST, "other") == []
        process.kill()
        wait_until(lambda: process.status() == psutil.STATUS_ZOMBIE)
        assert marked(TEST, str(tmp_path)) == []
    finally:
        process.kill()
        process.wait()
