import time
from pathlib import Path

import pytest

from pspnet.tracking.journal import JOURNAL, append, read
from tests.tracking.runs import new_journal
from tests.waiting import wait_until


def kinds(folder: Path) -> list[str]:
    return [entry["kind"] for entry, _ in read(folder / JOURNAL)]


def test_a_line_torn_by_a_kill_is_dropped_and_the_next_one_is_whole(tmp_path: Path) -> None:
    new_journal(tmp_path, "m").add("epoch", step=1, values={"loss": 1.0})
    whole = (tmp_path / JOURNAL).read_bytes()
    (tmp_path / JOURNAL).write_bytes(whole + b'{"kind": "epoch", "time": 5, "st')
    assert kinds(tmp_path) == ["journal", "begin", "epoch"]
    again = new_journal(tmp_path, "m")
    again.add("epoch", step=2, values={"loss": 0.5})
    assert (tmp_path / JOURNAL).read_bytes().startswith(whole)
    assert kinds(tmp_path) == ["journal", "begin", "epoch", "end", "begin", "epoch"]


@pytest.mark.parametrize("left", [b"", b'{"kind": "journ', b"\x00\x00\n"])
def test_a_process_killed_in_its_first_line_leaves_no_journal(tmp_path: Path, left: bytes) -> None:
    (tmp_path / JOURNAL).write_bytes(left)
    new_journal(tmp_path, "m")
    assert kinds(tmp_path) == ["journal", "begin"]


def test_all_attempts_at_the_same_work_share_an_id(tmp_path: Path) -> None:
    new_journal(tmp_path / "one", "m")
    new_journal(tmp_path / "one", "m")
    new_journal(tmp_path / "two", "m")
    entries = [entry for folder in ("one", "two") for entry, _ in read(tmp_path / folder / JOURNAL)]
    ids = [entry["id"] for entry in entries if entry["kind"] == "journal"]
    assert len(ids) == len(set(ids)) == 2
    assert [entry["attempt"] for entry in entries if entry["kind"] == "begin"] == [1, 2, 1]


def test_entries_from_before_a_resume_are_not_written_again(tmp_path: Path) -> None:
    first = new_journal(tmp_path, "m")
    assert first.add("epoch", step=1, values={"loss": 1.0})
    assert first.add("figures", values={"refused": 0.0})
    again = new_journal(tmp_path, "m")
    assert not again.add("epoch", step=1, values={"loss": 1.0})
    assert not again.add("figures", values={"refused": 0.0})
    assert again.add("epoch", step=2, values={"loss": 1.0})
    assert again.add("figures", values={"refused": 1.0})


def test_an_attempt_without_an_end_was_killed(tmp_path: Path) -> None:
    new_journal(tmp_path, "m")
    second = new_journal(tmp_path, "m")
    second.add("end", attempt=second.attempt, status="FINISHED", message="")
    new_journal(tmp_path, "m")
    ends = [entry for entry, _ in read(tmp_path / JOURNAL) if entry["kind"] == "end"]
    assert [(end["attempt"], end["status"]) for end in ends] == [(1, "KILLED"), (2, "FINISHED")]


def test_invalid_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    append(path, {"kind": "a", "time": 1})
    with path.open("ab") as file:
        file.write(b'[1]\nno JSON\n{"kind": "no time"}\n\xff\n')
    append(path, {"kind": "b", "time": 2})
    found = read(path)
    assert [entry["kind"] for entry, _ in found] == ["a", "b"]
    assert found[-1][1] == path.stat().st_size
    assert [entry["kind"] for entry, _ in read(path, found[0][1])] == ["b"]


def test_a_different_time_does_not_make_an_entry_new(tmp_path: Path) -> None:
    journal = new_journal(tmp_path, "m")
    journal.add("figures", values={"refused": 0.0})
    recorded_at = read(tmp_path / JOURNAL)[-1][0]["time"]
    wait_until(lambda: time.time_ns() // 1_000_000 > recorded_at)
    assert not journal.add("figures", values={"refused": 0.0})
