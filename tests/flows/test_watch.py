"""What a look at the data finds. Only the server that is asked for a retraining is played."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prefect.logging import disable_run_logger

from flows import watch
from flows.dag import read_dag
from flows.ending import Trouble
from flows.workplace import Workplace
from tests.e2e.pipeline import checkout, run

# DVC asks pygtrie in a way of before.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")
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


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkout(tmp_path_factory.mktemp("checkout"))


def look(project: Path, monkeypatch: pytest.MonkeyPatch, settled_seconds: int = 0) -> str | Trouble:
    monkeypatch.chdir(project)
    place = Workplace(project, project)
    return watch._look(place, place.environment(), read_dag(project), settled_seconds, watch.RETRAIN)


def test_new_data_start_one_retraining_once_they_have_come_to_rest(
    project: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = project / "data/raw"
    assert look(project, monkeypatch) == "Nothing new."

    raw.mkdir()
    (raw / "a.png").write_bytes(b"a")
    assert look(project, monkeypatch, 3600) == "data/raw changed less than 3600 s ago."
    assert not (project / "data/raw.dvc").exists()

    server.is_away = True
    with pytest.raises(ConnectionError):
        look(project, monkeypatch)
    server.is_away = False
    assert look(project, monkeypatch) == STARTED  # it was not forgotten
    [(key, files)] = server.asked
    assert files == {"data/raw.dvc": (project / "data/raw.dvc").read_text()}
    missing = json.loads(run(project, "dvc", "data", "status", "--not-in-remote", "--json"))
    assert "not_in_remote" not in missing

    assert look(project, monkeypatch) == "Nothing new."
    os.utime(raw / "a.png", (0, 0))
    assert look(project, monkeypatch) == "Nothing new."  # the same content
    (raw / "b.png").write_bytes(b"b")
    assert look(project, monkeypatch) == STARTED
    (raw / "b.png").unlink()
    assert look(project, monkeypatch) == STARTED
    keys = [key for key, _ in server.asked]
    assert len(keys) == 3
    assert keys[0] == keys[2] == key  # of a content that was had before the server knows the run
    assert keys[1] != key


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
    time.sleep(0.05)  # a clock of files ticks slowly
    os.utime(folder / "a.png", (0, 0))  # as `cp -p` of an old file
    changed_at = watch._listing(folder)[1]
    assert changed_at > before > 0
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
