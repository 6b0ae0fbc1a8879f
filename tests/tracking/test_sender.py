"""When a sender gives up, and the order in which it sends."""

import threading
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pspnet.tracking.delivery import TOO_LATE, Delivery
from pspnet.tracking.receipt import Receipt
from pspnet.tracking.sender import Limits, Sending, Watch
from tests.tracking.runs import history, new_journal, the_run

LIMITS = Limits(last=110, still=20, away=3, others=5)


@pytest.fixture
def watch() -> Watch:
    watch = Watch(LIMITS)
    watch.end()
    return watch


def first_verdict(watch: Watch, cpu_share: float) -> tuple[float, int]:
    """Return the number of seconds until the sender ends, and the sender's exit status."""
    end = time.monotonic()
    for tick in range(2000):
        seconds = tick / 10
        if (status := watch.verdict(end + seconds, seconds * cpu_share)) is not None:
            return seconds, status
    raise AssertionError("never")


def test_a_busy_sender_has_nearly_two_minutes(watch: Watch) -> None:
    seconds, status = first_verdict(watch, cpu_share=0.1)  # MLflow is loading on a very busy machine
    assert (round(seconds), status) == (110, TOO_LATE)


def test_a_sender_that_gets_no_answer_gives_up_sooner(watch: Watch) -> None:
    seconds, status = first_verdict(watch, cpu_share=0)
    assert (round(seconds), status) == (20, TOO_LATE)


@pytest.mark.parametrize(("away_since", "expected"), [(-100, 3), (0, 3), (30, 33)])
def test_a_sender_does_not_wait_for_a_server_that_is_down(watch: Watch, away_since: float, expected: int) -> None:
    watch.away_since = time.monotonic() + away_since
    seconds, status = first_verdict(watch, cpu_share=0.5)
    assert (round(seconds), status) == (expected, TOO_LATE)


@pytest.mark.parametrize(("done_at", "expected"), [(-100, 5), (30, 35)])
def test_other_journals_get_a_few_seconds_after_our_own(watch: Watch, done_at: float, expected: int) -> None:
    watch.done_at = time.monotonic() + done_at
    seconds, status = first_verdict(watch, cpu_share=0.5)
    assert (round(seconds), status) == (expected, 0)


class EndsMeanwhile(threading.Event):
    """An event that is not set at the first check but is set at every later check."""

    checks = 0

    def is_set(self) -> bool:
        self.checks += 1
        return self.checks > 1


def test_the_end_of_our_own_journal_is_sent_before_other_journals(database: str, state: Path) -> None:
    other, journal = new_journal(state / "tracking/other-1", "other"), new_journal(state / "tracking/own-1", "own")
    other.add("end", attempt=1, status="FINISHED", message="")
    watch = Watch(LIMITS)
    sending = Sending(state, Delivery(state, journal.folder), watch)
    watch.over = EndsMeanwhile()
    assert not sending.step()
    assert not Receipt.of(other.folder).run_id  # our own stage ended before this journal was sent
    journal.add("epoch", step=1, values={"loss": 1.0})
    journal.add("end", attempt=1, status="FINISHED", message="")
    assert sending.step()
    client = MlflowClient(database)
    assert the_run(client, "own").info.status == the_run(client, "other").info.status == "FINISHED"
    assert history(client, the_run(client, "own"), "loss") == [(1, 1.0)]


def test_a_long_stage_sends_other_journals_immediately(database: str, state: Path) -> None:
    other, journal = new_journal(state / "tracking/other-1", "other"), new_journal(state / "tracking/own-1", "own")
    assert not Sending(state, Delivery(state, journal.folder), Watch(LIMITS)).step()
    assert Receipt.of(other.folder).run_id
