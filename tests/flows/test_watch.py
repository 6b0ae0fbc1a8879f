"""What a look at the data finds. Only the server that is asked for a retraining is played."""

import os
import shutil
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prefect.logging import disable_run_logger

from flows import watch
from flows.dag import Source, read_dag
from flows.ending import NETWORK, Trouble
from flows.workplace import Workplace
from tests.e2e.pipeline import checkout
from tests.flows.repository import dvc
from tests.waiting import wait_until

# DVC asks pygtrie in a way of before.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")
AWAY = Trouble(NETWORK, "Connection refused")
STARTED = "New data in data/raw: brave-bat retrains."


@dataclass
class Server:
    name: str = "brave-bat"
    is_away: bool = False
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def run_deployment(self, name: str, *, parameters: dict[str, Any], idempotency_key: str, **_: Any) -> "Server":
        if self.is_away:
            raise ConnectionError("All connection attempts failed")
        assert name == watch.RETRAIN
        self.asked.append((idempotency_key, parameters["data"]))
        return self


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    played = Server()
    monkeypatch.setattr(watch, "run_deployment", played.run_deployment)
    with disable_run_logger():
        yield played


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return checkout(tmp_path)


def look(project: Path, settled_seconds: int = 0, found: Trouble | None = None) -> str | Trouble:
    """As the flow does, with DVC in this process. `found`: why DVC cannot push."""

    def bring_in(source: Source) -> None:
        with dvc(project) as repo:
            repo.add(source.name)

    def push(sources: list[Source]) -> Trouble | None:
        with dvc(project) as repo:
            repo.push([source.file for source in sources])
        return found

    def start(sources: list[Source], new: list[str]) -> str:
        return watch._start(project, sources, watch.RETRAIN, new)

    with chdir(project):
        dag = read_dag(project)
    return watch.look(Workplace(project, project), dag, settled_seconds, bring_in, push, start)


def not_in_remote(project: Path) -> object:
    with dvc(project) as repo:
        return repo.data_status(not_in_remote=True, remote_refresh=True)["not_in_remote"]


def test_new_data_start_one_retraining_once_they_have_come_to_rest(project: Path, server: Server) -> None:
    raw = project / "data/raw"
    assert look(project) == "Nothing new."

    raw.mkdir()
    (raw / "a.png").write_bytes(b"a")
    assert look(project, 3600) == "data/raw changed less than 3600 s ago."
    assert not (project / "data/raw.dvc").exists()

    server.is_away = True
    with pytest.raises(ConnectionError):
        look(project)
    server.is_away = False
    assert look(project, found=AWAY) == AWAY
    assert server.asked == []
    assert look(project) == STARTED  # it was not forgotten
    [(key, files)] = server.asked
    assert files == {"data/raw.dvc": (project / "data/raw.dvc").read_text()}
    assert not not_in_remote(project)

    assert look(project) == "Nothing new."
    os.utime(raw / "a.png", (0, 0))
    assert look(project) == "Nothing new."  # the same content
    (raw / "b.png").write_bytes(b"b")
    assert look(project) == STARTED
    (raw / "b.png").unlink()
    assert look(project) == STARTED
    keys = [key for key, _ in server.asked]
    assert len(keys) == 3
    assert keys[0] == keys[2] == key  # of a content that was had before the server knows the run
    assert keys[1] != key


@pytest.mark.e2e
def test_the_flow_adds_the_data_and_pushes_them_before_it_starts_a_retraining(
    project: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "data/raw").mkdir()
    (project / "data/raw/a.png").write_bytes(b"a")
    with chdir(project):
        dag = read_dag(project)
    place = Workplace(project, project)
    assert watch._look(place, place.environment(), dag, 0, watch.RETRAIN) == STARTED
    [(_, files)] = server.asked
    assert files == {"data/raw.dvc": (project / "data/raw.dvc").read_text()}
    assert not not_in_remote(project)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "raw/sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        (tmp_path / "raw" / name).write_text("one")
    return tmp_path / "raw"


def test_every_change_of_a_file_is_another_listing(folder: Path) -> None:
    listings = [watch._listing(folder)[0]]

    def now() -> str:
        listings.append(watch._listing(folder)[0])
        return listings[-1]

    assert now() == listings[0]
    (folder / "sub/b.png").write_text("two!")
    assert now() not in listings[:-1]
    (folder / "sub/b.png").rename(folder / "b.png")
    assert now() not in listings[:-1]
    os.utime(folder / "a.png", ns=(0, 1))
    assert now() not in listings[:-1]
    (folder / "a.png").unlink()
    assert now() not in listings[:-1]


def test_when_something_changed_is_not_when_a_copy_says_so(folder: Path) -> None:
    _, before = watch._listing(folder)

    def copied() -> float:
        os.utime(folder / "a.png", (0, 0))  # as `cp -p` of an old file
        return watch._listing(folder)[1]

    assert before > 0
    wait_until(lambda: copied() > before)  # a clock of files ticks slowly
    changed_at = copied()
    assert changed_at == (folder / "a.png").stat().st_ctime
    (folder / "sub/b.png").unlink()
    assert watch._listing(folder)[1] == (folder / "sub").stat().st_ctime  # also what has gone


def test_data_in_one_file_are_looked_at_too(folder: Path) -> None:
    archive = folder / "a.png"
    first, changed_at = watch._listing(archive)
    assert first
    assert changed_at == archive.stat().st_ctime
    archive.write_text("another")
    assert watch._listing(archive)[0] != first


def test_what_is_not_there_has_no_listing(folder: Path) -> None:
    shutil.rmtree(folder)
    assert watch._listing(folder) == ("", 0.0)
