"""How runs in pools are started and how their results are awaited. Only the server is a fake."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from httpx import ConnectError
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging import disable_run_logger
from prefect.states import AwaitingRetry, Completed, Crashed, Failed, Pending, Running, Scheduled

from flows.failure import Failure
from flows.team import pools
from flows.workplace import Workplace
from tests.waiting import Clock

AWAY = "away"
IDLE_SECONDS = 60
POLLS = 40  # these polls take longer than IDLE_SECONDS


class Server:
    """A server with each run's state at each poll. The last state repeats. `AWAY` means that the server does not
    answer.
    """

    def __init__(self, *stories: list[State[Any] | str]) -> None:
        self.runs = [
            FlowRun(flow_id=uuid.uuid4(), name=f"run-{number}", state=Scheduled()) for number in range(len(stories))
        ]
        self._stories = {run.id: story for run, story in zip(self.runs, stories, strict=True)}

    @contextmanager
    def client(self, **_: Any) -> Iterator["Server"]:
        yield self

    def read_flow_run(self, number: uuid.UUID) -> FlowRun:
        story = self._stories[number]
        state = story.pop(0) if len(story) > 1 else story[0]
        if isinstance(state, str):
            raise ConnectError("All connection attempts failed")
        (run,) = (one for one in self.runs if one.id == number)
        return run.model_copy(update={"state": state})

    def set_flow_run_state(self, number: uuid.UUID, state: State[Any], force: bool) -> None:
        assert force
        self._stories[number] = [state]


def wait(monkeypatch: pytest.MonkeyPatch, server: Server, idle_seconds: float | None = None) -> list[str | None]:
    monkeypatch.setattr(pools, "time", Clock())
    monkeypatch.setattr(pools, "get_client", server.client)
    with disable_run_logger():
        over = pools.wait_for(server.runs, idle_seconds)
    assert [run.id for run in over] == [run.id for run in server.runs]
    return [run.state.name for run in over if run.state]


def test_runs_are_awaited_and_returned_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server([Running(), Running(), Running(), Completed()], [Failed()], [Running(), Completed()])
    assert wait(monkeypatch, server) == ["Completed", "Failed", "Completed"]


def test_a_crashed_run_is_awaited_only_if_it_is_rescheduled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server([Running(), Crashed(), Crashed(), AwaitingRetry(), Running(), Completed()], [Crashed()])
    assert wait(monkeypatch, server) == ["Completed", "Crashed"]
    late = Server([*[Crashed()] * POLLS, AwaitingRetry(), Completed()], [*[Crashed()] * 2 * POLLS, Completed()])
    assert wait(monkeypatch, late) == ["Completed", "Crashed"]


def test_runs_that_no_worker_takes_are_withdrawn_once_no_other_is_active(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server([*[Running()] * POLLS, Completed()], [Scheduled()], [Scheduled(), AwaitingRetry()])
    assert wait(monkeypatch, server, idle_seconds=IDLE_SECONDS) == ["Completed", "Withdrawn", "Withdrawn"]
    late = Server([*[Scheduled()] * 5, *[Pending()] * POLLS, Running(), Completed()])
    assert wait(monkeypatch, late, idle_seconds=IDLE_SECONDS) == ["Completed"]


def test_without_a_limit_runs_wait_for_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wait(monkeypatch, Server([*[Scheduled()] * POLLS, Completed()])) == ["Completed"]


def test_no_run_is_withdrawn_while_the_server_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server([Scheduled(), *[AWAY] * POLLS, Scheduled(), Completed()])
    assert wait(monkeypatch, server, idle_seconds=IDLE_SECONDS) == ["Completed"]


def test_a_failed_run_keeps_its_message() -> None:
    (run,) = Server([]).runs
    assert pools.run_failure(run.model_copy(update={"state": Completed()})) is None
    said: State[Any] = Failed(name="Busy", message="prepare: a lock is held")
    assert pools.run_failure(run.model_copy(update={"state": said})) == Failure("Busy", "prepare: a lock is held")
    assert pools.run_failure(run.model_copy(update={"state": Crashed()})) == Failure(
        "Crashed", "run-0 finished with state Crashed."
    )


def test_a_resumed_run_reuses_its_child_runs_unless_they_failed_or_had_different_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    runs: dict[str, FlowRun] = {}

    def run_deployment(name: str, *, idempotency_key: str, **_: Any) -> FlowRun:
        made = FlowRun(flow_id=uuid.uuid4(), name=name, state=Scheduled())
        return runs.setdefault(idempotency_key, made)

    def start(files: str) -> FlowRun:
        return pools.start_run(
            "part/part", "prepare 1/2", {"files": files}, "part-1", Workplace(tmp_path, tmp_path), {}
        )

    monkeypatch.setattr(pools, "run_deployment", run_deployment)
    first = start("old")
    assert start("old") is first
    for first.state in (Running(), Crashed(), Completed()):
        assert start("old") is first
    assert start("new") is not first
    first.state = Failed()
    second = start("old")
    assert second is not first
    assert start("old") is second
