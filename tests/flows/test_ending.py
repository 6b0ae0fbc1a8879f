import json
from pathlib import Path

import pytest

from flows.commands import Ended
from flows.ending import BUSY, FAILED, INTERRUPTED, KILLED, NETWORK, TEMPORARY, TIMED_OUT, Trouble, trouble

EXITED = "ERROR: failed to reproduce 'finetune': failed to run: train --server-timeout 5, exited with {}"
AWAY = 'ERROR: unexpected error - Could not connect to the endpoint URL: "https://s3.example/b"'


def ended(status: int, output: str = "", timed_out: bool = False) -> Ended:
    return Ended(status, 1.0, timed_out, output)


@pytest.fixture
def exit_file(tmp_path: Path) -> Path:
    return tmp_path / "finetune.json"


def write(path: Path, kind: str, status: int, message: str) -> None:
    path.write_text(json.dumps({"class": kind, "exit": status, "message": message}))


def test_what_ended_well_is_no_trouble(exit_file: Path) -> None:
    assert trouble(ended(0, AWAY), None) is None
    write(exit_file, "bug", 1, "of another time")
    assert trouble(ended(0), None, exit_file) is None


def test_too_late_is_too_late_however_it_ended(exit_file: Path) -> None:
    write(exit_file, "interrupted", 75, "Stopped after step 3, which is saved.")
    found = trouble(ended(-15, timed_out=True), 5400, exit_file)
    assert found is not None
    assert found.name == TIMED_OUT
    assert found.message.startswith("It took longer than 5,400 s, and was ended with all its processes.")
    assert TIMED_OUT not in TEMPORARY


@pytest.mark.parametrize(
    ("kind", "status", "name", "message"),
    [
        ("user", 1, FAILED, "said"),
        ("busy", 75, BUSY, "said"),
        ("interrupted", 75, INTERRUPTED, "said"),
        ("interrupted", 130, FAILED, "said"),  # by a person
        ("memory", 1, FAILED, "It ran out of memory. said"),
        ("bug", 1, FAILED, "said\nThe traceback is in the log: this is a bug."),
    ],
)
def test_a_stage_of_ours_says_why_it_ended(exit_file: Path, kind: str, status: int, name: str, message: str) -> None:
    write(exit_file, kind, status, "said")
    # What DVC makes of it does not matter, nor what the stage has told of a server.
    output = f"finetune: connection refused, this run is not tracked\n{EXITED.format(status)}"
    assert trouble(ended(255, output), None, exit_file) == Trouble(name, message)


def test_of_a_stage_that_was_done_dvc_may_still_have_something_to_say(exit_file: Path) -> None:
    write(exit_file, "done", 0, "")
    found = trouble(ended(255, "finetune: done in 3 s\nERROR: failed to push data: connection reset"), None, exit_file)
    assert found == Trouble(NETWORK, "failed to push data: connection reset")


@pytest.mark.parametrize(
    ("status", "name"),
    [(-9, KILLED), (137, KILLED), (-15, INTERRUPTED), (143, INTERRUPTED), (75, BUSY), (130, FAILED), (-2, FAILED),
     (17, FAILED)],
)  # fmt: skip
def test_of_a_stage_that_says_nothing_the_status_tells(exit_file: Path, status: int, name: str) -> None:
    found = trouble(ended(255, f"epoch 3: no route to host\n{EXITED.format(status)}"), None, exit_file)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize("status", [-9, -15, 75, 130, 1])
def test_so_it_does_of_another_command(status: int) -> None:
    found = trouble(ended(status, "what it said"), None)
    assert found is not None
    assert (found.name in TEMPORARY) == (status in (-9, -15, 75))


@pytest.mark.parametrize(
    "said",
    [
        "Unable to acquire lock. Most likely another DVC process is running or was terminated abruptly.",
        "'data/raw' is busy, it is being blocked by:\n  (PID 12): dvc add data/raw",
        "unexpected error - database is locked",
    ],
)
def test_a_lock_of_dvc_is_waited_for(said: str) -> None:
    found = trouble(ended(255, f"Adding...\nERROR: {said}\n"), None)
    assert found == Trouble(BUSY, said)


@pytest.mark.parametrize(
    "said",
    [
        'unexpected error - Could not connect to the endpoint URL: "https://s3.example/b"',
        "unexpected error - [Errno 111] Connection refused",
        "failed to connect to ssh.example",
        "unexpected error - [Errno -3] Temporary failure in name resolution",
        "unexpected error - Read timed out.",
        "unexpected error - An error occurred (SlowDown) when calling the PutObject operation: slow down",
        "unexpected error - An error occurred (503): Service Unavailable",
    ],
)
def test_a_network_that_is_away_may_come_back(said: str) -> None:
    assert trouble(ended(255, f"ERROR: {said}"), None) == Trouble(NETWORK, said)


@pytest.mark.parametrize(
    "said",
    [
        "unexpected error - An error occurred (AccessDenied) when calling the PutObject operation: Access Denied",
        "Checkout failed for following targets:\ndata/raw\nIs your cache up to date?",
        "output 'data/raw' does not exist",
    ],
)
def test_what_does_not_mend_itself_is_not_tried_again(said: str) -> None:
    assert trouble(ended(255, f"ERROR: {said}"), None) == Trouble(FAILED, said)


def test_what_dvc_calls_errors_is_told_without_its_advice() -> None:
    output = "\n".join(
        [
            "3 files pushed",
            "WARNING: connection refused, once",
            "ERROR: failed to push data to the cloud",
            "Having any troubles? Hit us up at https://dvc.org/support, we are always happy to help!",
        ]
    )
    assert trouble(ended(255, output), None) == Trouble(FAILED, "failed to push data to the cloud")


def test_of_much_the_end_is_told_and_of_nothing_the_status() -> None:
    found = trouble(ended(1, "\n".join(str(number) for number in range(100))), None)
    assert found == Trouble(FAILED, "\n".join(str(number) for number in range(90, 100)))
    assert trouble(ended(3), None) == Trouble(FAILED, "It ended with 3 and said nothing.")
