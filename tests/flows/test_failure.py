from collections.abc import Sequence

import pytest

from flows.command import CommandResult
from flows.failure import BUSY, FAILED, INTERRUPTED, KILLED, NETWORK, TEMPORARY, TIMED_OUT, Failure, failure_of
from pspnet.machine.events import Event, event

EXITED = "ERROR: failed to reproduce 'finetune': failed to run: train --server-timeout 5, exited with {}"
AWAY = 'ERROR: unexpected error - Could not connect to the endpoint URL: "https://s3.example/b"'


def ended(status: int, output: str = "", timed_out: bool = False, events: Sequence[Event] = ()) -> CommandResult:
    return CommandResult(status, 1.0, timed_out, output, list(events))


def told(kind: str, status: int, message: str, **more: int) -> Event:
    return event("exit", **{"class": kind, "status": status, "message": message}, **more)


def test_success_is_not_a_failure() -> None:
    assert failure_of(ended(0, AWAY), None) is None


def test_a_timeout_is_a_timeout_however_the_command_ended() -> None:
    stopped = told("interrupted", 75, "Stopped after step 3, which is saved.")
    found = failure_of(ended(-15, timed_out=True, events=[stopped]), 5400)
    assert found is not None
    assert found.name == TIMED_OUT
    assert found.message.startswith("It ran longer than 5,400 s and was stopped with all its processes.")
    assert TIMED_OUT not in TEMPORARY


@pytest.mark.parametrize(
    ("kind", "status", "name", "message"),
    [
        ("user", 1, FAILED, "said"),
        ("busy", 75, BUSY, "said"),
        ("interrupted", 75, INTERRUPTED, "said"),
        ("interrupted", 130, FAILED, "said"),  # stopped by a person
        ("memory", 1, FAILED, "It ran out of memory. said"),
        ("bug", 1, FAILED, "said\nThis is a bug. The traceback is in the log."),
    ],
)
def test_the_exit_event_says_why_a_stage_failed(kind: str, status: int, name: str, message: str) -> None:
    # Neither DVC's exit status nor a server error in the stage's output matters.
    output = f"finetune: connection refused, this run is not tracked\n{EXITED.format(status)}"
    assert failure_of(ended(255, output, events=[told(kind, status, "said")]), None) == Failure(name, message)


def test_the_launcher_says_why_its_processes_failed() -> None:
    of_one, of_all = told("interrupted", 75, "lost its peer", rank=0), told("user", 1, "said")
    assert failure_of(ended(255, events=[of_one, of_all, of_one]), None) == Failure(FAILED, "said")
    assert failure_of(ended(255, EXITED.format(-9), events=[of_one]), None) == Failure(
        KILLED, "It was killed. The system does this when memory runs out."
    )


def test_dvc_can_fail_after_the_stage_has_succeeded() -> None:
    output = "finetune: done in 3 s\nERROR: failed to push data: connection reset"
    found = failure_of(ended(255, output, events=[told("done", 0, "")]), None)
    assert found == Failure(NETWORK, "failed to push data: connection reset")


@pytest.mark.parametrize(
    ("status", "name"),
    [(-9, KILLED), (137, KILLED), (-15, INTERRUPTED), (143, INTERRUPTED), (75, BUSY), (130, FAILED), (-2, FAILED),
     (17, FAILED)],
)  # fmt: skip
def test_without_an_exit_event_the_exit_status_of_the_stage_decides(status: int, name: str) -> None:
    found = failure_of(ended(255, f"epoch 3: no route to host\n{EXITED.format(status)}"), None)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize("status", [-9, -15, 75, 130, 1])
def test_the_exit_status_of_another_command_decides(status: int) -> None:
    found = failure_of(ended(status, "what it said"), None)
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
def test_a_dvc_lock_is_temporary(said: str) -> None:
    found = failure_of(ended(255, f"Adding...\nERROR: {said}\n"), None)
    assert found == Failure(BUSY, said)


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
def test_network_errors_are_temporary(said: str) -> None:
    assert failure_of(ended(255, f"ERROR: {said}"), None) == Failure(NETWORK, said)


@pytest.mark.parametrize(
    "said",
    [
        "unexpected error - An error occurred (AccessDenied) when calling the PutObject operation: Access Denied",
        "Checkout failed for following targets:\ndata/raw\nIs your cache up to date?",
        "output 'data/raw' does not exist",
    ],
)
def test_other_dvc_errors_are_permanent(said: str) -> None:
    assert failure_of(ended(255, f"ERROR: {said}"), None) == Failure(FAILED, said)


def test_dvc_errors_are_shown_without_its_advice() -> None:
    output = "\n".join(
        [
            "3 files pushed",
            "WARNING: connection refused, once",
            "ERROR: failed to push data to the cloud",
            "Having any troubles? Hit us up at https://dvc.org/support, we are always happy to help!",
        ]
    )
    assert failure_of(ended(255, output), None) == Failure(FAILED, "failed to push data to the cloud")


def test_the_message_is_the_last_lines_or_the_exit_status() -> None:
    found = failure_of(ended(1, "\n".join(str(number) for number in range(100))), None)
    assert found == Failure(FAILED, "\n".join(str(number) for number in range(90, 100)))
    assert failure_of(ended(3), None) == Failure(FAILED, "It exited with status 3 and no output.")
