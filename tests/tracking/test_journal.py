import time
from pathlib import Path

import pytest

from pspnet.machine.events import append, event
from pspnet.tracking.journal import JOURNAL, JournalReader
from tests.tracking.runs import entries, new_journal
from tests.waiting import wait_until


def kinds(folder: Path) -> list[str]:
    return [entry["kind"] for entry in entries(folder)]


def test_a_line_torn_by_a_kill_is_dropped_and_the_next_line_is_complete(tmp_path: Path) -> None:
    first = new_journal(tmp_path, "m")
    first.add("epoch", step=1, values={"loss": 1.0})
    with first.log.open("ab") as file:
        file.write(b'{"kind": "epoch", "time": 5, "st')
    assert kinds(tmp_path) == ["journal", "begin", "epoch"]
    again = new_journal(tmp_path, "m")
    again.add("epoch", step=2, values={"loss": 0.5})
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
    found = [entry for folder in ("one", "two") for entry in entries(tmp_path / folder)]
    ids = [entry["id"] for entry in found if entry["kind"] == "journal"]
    assert len(ids) == len(set(ids)) == 2
    assert [entry["attempt"] for entry in found if entry["kind"] == "begin"] == [1, 2, 1]


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
    ends = [entry for entry in entries(tmp_path) if entry["kind"] == "end"]
    assert [(end["attempt"], end["status"]) for end in ends] == [(1, "KILLED"), (2, "FINISHED")]


def test_a_reader_gets_the_records_that_came_since_its_last_call(tmp_path: Path) -> None:
    first = new_journal(tmp_path, "m")
    reader = JournalReader(tmp_path)
    assert [record.entry["kind"] for record in reader.new()] == ["journal", "begin"]
    first.add("end", attempt=1, status="FINISHED", message="")
    new_journal(tmp_path, "m")
    assert [record.entry["kind"] for record in reader.new()] == ["end", "begin"]
    assert reader.new() == []


def test_events_meant_for_other_readers_are_not_records(tmp_path: Path) -> None:
    journal = new_journal(tmp_path, "m")
    reader = JournalReader(tmp_path)
    reader.new()
    before = dict(reader.offsets)
    append(journal.log, event("progress", title="finetune", done=1, total=2, note=""))
    append(journal.log, event("from the future", attempt=7))
    assert reader.new() == []
    assert reader.offsets == before
    journal.add("epoch", step=1, values={"loss": 1.0})
    assert [record.entry["kind"] for record in reader.new()] == ["epoch"]


def test_a_journal_with_its_records_in_one_file_is_continued(tmp_path: Path) -> None:
    """Before decision 0025, records were written to the journal itself."""
    about = {"id": "i", "stage": "finetune", "key": "key", "params": {}, "experiment": "m", "started": 1}
    append(tmp_path / JOURNAL, event("journal", **about))
    process = {"host": "another machine", "pid": 1, "created": 0.0}
    append(tmp_path / JOURNAL, event("begin", attempt=1, tags={}, started=1, process=process))
    append(tmp_path / JOURNAL, event("epoch", step=1, values={"loss": 1.0}))
    again = new_journal(tmp_path, "m")
    assert (again.id, again.attempt) == ("i", 2)
    assert not again.add("epoch", step=1, values={"loss": 1.0})
    assert again.add("epoch", step=2, values={"loss": 0.5})
    assert kinds(tmp_path) == ["journal", "begin", "epoch", "end", "begin", "epoch"]


def test_a_different_time_does_not_make_an_entry_new(tmp_path: Path) -> None:
    journal = new_journal(tmp_path, "m")
    journal.add("figures", values={"refused": 0.0})
    recorded_at = entries(tmp_path)[-1]["time"]
    wait_until(lambda: time.time_ns() // 1_000_000 > recorded_at)
    assert not journal.add("figures", values={"refused": 0.0})
