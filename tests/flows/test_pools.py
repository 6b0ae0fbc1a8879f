"""How runs in pools are started and waited for. Only the server is played."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from httpx import ConnectError
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging import disable_run_logger
from prefect.states import AwaitingRetry, Completed, Crashed, Failed, Pending, Running, Scheduled

from flows import pools
from flows.ending import Trouble
from flows.workplace import Workplace
from tests.waiting import Clock

AWAY = "away"
IDLE_SECONDS = 60
LOOKS = 40  # that together take longer


class Server:
    """What becomes of each run at each look; the last stays. `AWAY`: the server does not answer."""

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
        over = pools.ended(server.runs, idle_seconds)
    assert [run.id for run in over] == [run.id for run in server.runs]
    return [run.state.name for run in over if run.state]


def test_all_are_waited_for_and_told_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server([Running(), Running(), Running(), Completed()], [Failed()], [Running(), Completed()])
    assert wait(monkeypatch, server) == ["Completed", "Failed", "Completed"]


def test_a_crashed_one_that_is_scheduled_again_is_waited_for_and_one_that_is_not_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server([Running(), Crashed(), Crashed(), AwaitingRetry(), Running(), Completed()], [Crashed()])
    assert wait(monkeypatch, server) == ["Completed", "Crashed"]
    late = Server([*[Crashed()] * LOOKS, AwaitingRetry(), Completed()], [*[Crashed()] * 2 * LOOKS, Completed()])
    assert wait(monkeypatch, late) == ["Completed", "Crashed"]


def test_what_nobody_takes_is_withdrawn_once_nobody_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server([*[Running()] * LOOKS, Completed()], [Scheduled()], [Scheduled(), AwaitingRetry()])
    assert wait(monkeypatch, server, idle_seconds=IDLE_SECONDS) == ["Completed", "Withdrawn", "Withdrawn"]
    late = Server([*[Scheduled()] * 5, *[Pending()] * LOOKS, Running(), Completed()])
    assert wait(monkeypatch, late, idle_seconds=IDLE_SECONDS) == ["Completed"]


def test_without_a_limit_it_is_waited_for_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wait(monkeypatch, Server([*[Scheduled()] * LOOKS, Completed()])) == ["Completed"]


def test_a_server_that_is_away_has_nothing_withdrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server([Scheduled(), *[AWAY] * LOOKS, Scheduled(), Completed()])
    assert wait(monkeypatch, server, idle_seconds=IDLE_SECONDS) == ["Completed"]


def test_who_failed_is_told_in_its_own_words() -> None:
    (run,) = Server([]).runs
    assert pools.failed(run.model_copy(update={"state": Completed()})) is None
    said: State[Any] = Failed(name="Busy", message="prepare: a lock is held")
    assert pools.failed(run.model_copy(update={"state": said})) == Trouble("Busy", "prepare: a lock is held")
    assert pools.failed(run.model_copy(update={"state": Crashed()})) == Trouble("Crashed", "run-0 ended as Crashed.")


def test_a_run_that_goes_on_finds_what_it_had_started_unless_that_failed_or_was_for_other_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    runs: dict[str, FlowRun] = {}

    def run_deployment(name: str, *, idempotency_key: str, **_: Any) -> FlowRun:
        made = FlowRun(flow_id=uuid.uuid4(), name=name, state=Scheduled())
        return runs.setdefault(idempotency_key, made)

    def start(files: str) -> FlowRun:
        return pools.started("part/part", "prepare 1/2", {"files": files}, "part-1", Workplace(tmp_path, tmp_path), {})

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
