"""The event log as its writers and readers share it."""

import json
import multiprocessing
from pathlib import Path

import pytest

from pspnet.machine.events import VARIABLE, append, discard, event, log, new_log, read, some_log, tell


def kinds(path: Path) -> list[str]:
    return [event["kind"] for event, _ in read(path)]


def test_events_are_read_in_order_and_from_an_offset(tmp_path: Path) -> None:
    path = new_log(tmp_path)
    for number in range(3):
        append(path, event("epoch", step=number))
    found = read(path)
    assert [event["step"] for event, _ in found] == [0, 1, 2]
    assert found[-1][1] == path.stat().st_size
    assert [event["step"] for event, _ in read(path, found[0][1])] == [1, 2]


def test_a_torn_last_line_is_skipped_and_the_next_event_is_complete(tmp_path: Path) -> None:
    path = new_log(tmp_path)
    append(path, event("a"))
    with path.open("ab") as file:
        file.write(b'{"kind": "epoch", "time": 5, "st')
    assert kinds(path) == ["a"]
    append(path, event("b"))
    assert kinds(path) == ["a", "b"]


def test_a_line_that_is_still_being_written_is_read_later(tmp_path: Path) -> None:
    path = new_log(tmp_path)
    line = json.dumps(event("a")).encode() + b"\n"
    path.write_bytes(line + line[:10])
    [(_, end)] = read(path)
    with path.open("ab") as file:
        file.write(line[10:])
    assert [offset for _, offset in read(path, end)] == [2 * len(line)]


def test_invalid_lines_are_skipped(tmp_path: Path) -> None:
    path = new_log(tmp_path)
    append(path, event("a"))
    with path.open("ab") as file:
        file.write(b'[1]\nno JSON\n{"kind": "no time"}\n\xff\n')
    append(path, event("b"))
    assert kinds(path) == ["a", "b"]
    assert read(path)[-1][1] == path.stat().st_size


def write_many(path: Path, writer: int) -> None:
    for number in range(200):
        append(path, event("note", writer=writer, number=number, text="x" * 5000))


@pytest.mark.e2e
def test_the_lines_of_two_writers_are_never_mixed(tmp_path: Path) -> None:
    path = new_log(tmp_path)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(path, writer)) for writer in range(2)]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
    found = [(event["writer"], event["number"]) for event, _ in read(path)]
    assert sorted(found) == [(writer, number) for writer in range(2) for number in range(200)]


def test_a_log_is_written_only_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    tell("a")
    path = new_log(tmp_path)
    monkeypatch.setenv(VARIABLE, str(path))
    tell("b", text="http://bob:secret@host")
    assert log() == path
    assert [event["text"] for event, _ in read(path)] == ["http://bob:***@host"]


def test_a_log_that_cannot_be_written_causes_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "missing/log.jsonl"))
    tell("a")


def test_each_of_several_processes_identifies_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = new_log(tmp_path)
    for name, value in {VARIABLE: str(path), "TORCHELASTIC_RUN_ID": "r", "RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    tell("exit")
    assert [event["rank"] for event, _ in read(path)] == [1]


def test_a_log_is_kept_only_if_a_journal_needs_it(tmp_path: Path) -> None:
    read_by_flow, tracked = new_log(tmp_path), new_log(tmp_path)
    append(read_by_flow, event("exit"))
    append(tracked, event("begin"))
    for path in (read_by_flow, tracked):
        discard(path)
    assert (read_by_flow.exists(), tracked.exists()) == (False, True)


def test_processes_of_a_command_share_a_log_even_without_a_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with some_log(tmp_path) as path:
        tell("exit")
        assert kinds(path) == ["exit"]
    tell("exit")
    assert not path.exists()
    given = new_log(tmp_path)
    monkeypatch.setenv(VARIABLE, str(given))
    with some_log(tmp_path) as path:
        assert path == given
    assert given.exists()


def test_a_log_is_readable_only_by_its_owner(tmp_path: Path) -> None:
    assert new_log(tmp_path).stat().st_mode & 0o777 == 0o600
