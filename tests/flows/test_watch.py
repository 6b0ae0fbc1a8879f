"""How new data is found. Only the server that starts the retraining is a fake."""

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
from flows.failure import NETWORK, Failure
from flows.workplace import Workplace
from tests.e2e.pipeline import checkout
from tests.flows.repository import dvc
from tests.waiting import wait_until

# DVC uses pygtrie in a deprecated way.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")
AWAY = Failure(NETWORK, "Connection refused")
STARTED = "New data in data/raw: started brave-bat."


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


def check(project: Path, settled_seconds: int = 0, found: Failure | None = None) -> str | Failure:
    """Check for new data as the flow does, with DVC in this process. If DVC cannot push, `found` is the reason."""

    def bring_in(source: Source) -> None:
        with dvc(project) as repo:
            repo.add(source.name)

    def push(sources: list[Source]) -> Failure | None:
        with dvc(project) as repo:
            repo.push([source.file for source in sources])
        return found

    def start(sources: list[Source], new: list[str]) -> str:
        return watch._start(project, sources, watch.RETRAIN, new)

    with chdir(project):
        dag = read_dag(project)
    return watch.check_for_new_data(Workplace(project, project), dag, settled_seconds, bring_in, push, start)


def not_in_remote(project: Path) -> object:
    with dvc(project) as repo:
        return repo.data_status(not_in_remote=True, remote_refresh=True)["not_in_remote"]


def test_new_data_starts_one_retraining_once_settled(project: Path, server: Server) -> None:
    raw = project / "data/raw"
    assert check(project) == "No new data."

    raw.mkdir()
    (raw / "a.png").write_bytes(b"a")
    assert check(project, 3600) == "data/raw changed less than 3600 s ago."
    assert not (project / "data/raw.dvc").exists()

    server.is_away = True
    with pytest.raises(ConnectionError):
        check(project)
    server.is_away = False
    assert check(project, found=AWAY) == AWAY
    assert server.asked == []
    assert check(project) == STARTED  # the flow has not forgotten the new data
    [(key, files)] = server.asked
    assert files == {"data/raw.dvc": (project / "data/raw.dvc").read_text()}
    assert not not_in_remote(project)

    assert check(project) == "No new data."
    os.utime(raw / "a.png", (0, 0))
    assert check(project) == "No new data."  # the content is the same
    (raw / "b.png").write_bytes(b"b")
    assert check(project) == STARTED
    (raw / "b.png").unlink()
    assert check(project) == STARTED
    keys = [key for key, _ in server.asked]
    assert len(keys) == 3
    assert keys[0] == keys[2] == key  # for known content, the server returns the earlier run
    assert keys[1] != key


@pytest.mark.e2e
def test_the_flow_adds_and_pushes_the_data_before_it_starts_a_retraining(
    project: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "data/raw").mkdir()
    (project / "data/raw/a.png").write_bytes(b"a")
    with chdir(project):
        dag = read_dag(project)
    place = Workplace(project, project)
    assert watch._check_checkout(place, place.environment(), dag, 0, watch.RETRAIN) == STARTED
    [(_, files)] = server.asked
    assert files == {"data/raw.dvc": (project / "data/raw.dvc").read_text()}
    assert not not_in_remote(project)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "raw/sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        (tmp_path / "raw" / name).write_text("one")
    return tmp_path / "raw"


def test_every_change_of_a_file_changes_the_listing(folder: Path) -> None:
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


def test_the_time_of_a_change_is_not_the_mtime_of_a_copy(folder: Path) -> None:
    _, before = watch._listing(folder)

    def copied() -> float:
        os.utime(folder / "a.png", (0, 0))  # as `cp -p` does with an old file
        return watch._listing(folder)[1]

    assert before > 0
    wait_until(lambda: copied() > before)  # file timestamps have a coarse resolution
    changed_at = copied()
    assert changed_at == (folder / "a.png").stat().st_ctime
    (folder / "sub/b.png").unlink()
    assert watch._listing(folder)[1] == (folder / "sub").stat().st_ctime  # removing a file is also a change


def test_data_can_be_a_single_file(folder: Path) -> None:
    archive = folder / "a.png"
    first, changed_at = watch._listing(archive)
    assert first
    assert changed_at == archive.stat().st_ctime
    archive.write_text("another")
    assert watch._listing(archive)[0] != first


def test_missing_data_has_no_listing(folder: Path) -> None:
    shutil.rmtree(folder)
    assert watch._listing(folder) == ("", 0.0)
