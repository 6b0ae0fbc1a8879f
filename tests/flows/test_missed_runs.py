"""Missed runs on a real server. The scheduler is a fake, because only a scheduler can mark a run as automatic."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from prefect import flow, get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import State
from prefect.logging import disable_run_logger
from prefect.states import Scheduled

from flows.missed_runs import newer_due_run
from tests.flows.server import PrefectServer


@flow(persist_result=False)
def nightly() -> None:
    """This flow is never run."""


class Server:
    def __init__(self, database: Path) -> None:
        self._database = database
        with get_client(sync_client=True) as client:
            self._deployment = client.create_deployment(client.create_flow(nightly), "nightly")

    def scheduled(self, name: str, minutes_ago: int, by_itself: bool = True, deployed: bool = True) -> UUID:
        state: State[None] = Scheduled(scheduled_time=datetime.now(UTC) - timedelta(minutes=minutes_ago))
        with get_client(sync_client=True) as client:
            if deployed:
                run = client.create_flow_run_from_deployment(self._deployment, state=state, name=name)
            else:
                run = client.create_flow_run(nightly, state=state, name=name)
        with closing(sqlite3.connect(self._database)) as database:
            database.execute("update flow_run set auto_scheduled = ? where id = ?", (by_itself, str(run.id)))
            database.commit()
        return run.id

    def names(self) -> set[str]:
        with get_client(sync_client=True) as client:
            ours = FlowFilter(name=FlowFilterName(any_=[nightly.name]))
            return {run.name for run in client.read_flow_runs(flow_filter=ours)}


@pytest.fixture
def server(prefect: PrefectServer) -> Iterator[Server]:
    with prefect.used(), disable_run_logger():
        yield Server(prefect.database)


def asked(monkeypatch: pytest.MonkeyPatch, run: UUID) -> str | None:
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", str(run))
    return newer_due_run()


@pytest.mark.e2e
def test_only_the_newest_missed_run_runs(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    oldest = server.scheduled("oldest", 30)
    server.scheduled("middle", 20)
    last = server.scheduled("last", 10)
    tomorrow = server.scheduled("tomorrow", -60)
    by_hand = server.scheduled("by hand", 5, by_itself=False)
    alone = server.scheduled("alone", 40, deployed=False)

    for run in (by_hand, alone, last, tomorrow):
        assert asked(monkeypatch, run) is None
    assert server.names() == {"oldest", "middle", "last", "tomorrow", "by hand", "alone"}
    assert asked(monkeypatch, oldest) == "Skipped: last is also due."
    assert server.names() == {"oldest", "last", "tomorrow", "by hand", "alone"}


def test_no_run_is_skipped_outside_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT__FLOW_RUN_ID", raising=False)
    assert newer_due_run() is None
