"""Checkouts that are created once per session, and fixtures that copy them for each test."""

from pathlib import Path

import pytest

from tests.e2e.pipeline import STEPS, SYNTHESIZE, checkout, copied, reproduce, run, warmed
from tests.files import made_once
from tests.flows.processes import left
from tests.flows.server import copy_tables

LENIENT = {"promotion__min_mean_iou": 0.0, "promotion__min_gain": -1.0, "promotion__max_class_loss": 1.0}


@pytest.fixture
def warm(stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `pspnet` and `dvc` start instantly and without tracking, for tests that test neither
    startup nor tracking.
    """
    for name, value in warmed(stand_ins).items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def finished_once(shared: Path, stand_ins: Path) -> Path:
    """A checkout in which DVC has run every stage on forty tiny images."""

    def make(folder: Path) -> None:
        checkout(folder, **LENIENT)
        run(folder, *SYNTHESIZE)
        assert reproduce(folder, **warmed(stand_ins)) == list(STEPS)

    return made_once(shared / "e2e/finished", make)


@pytest.fixture(scope="session")
def registered_once(shared: Path, stand_ins: Path, finished_once: Path) -> Path:
    """A copy of `finished_once` with its bundle registered as version 1 and champion."""

    def make(folder: Path) -> None:
        folder.rmdir()
        copied(finished_once, folder)
        run(folder, "pspnet", "register", "models/segmenter", "--promote", **warmed(stand_ins))

    return made_once(shared / "e2e/registered", make)


@pytest.fixture(scope="session")
def retrained_once(shared: Path, stand_ins: Path, prefects_tables: Path) -> Path:
    """The same data, code and params as in `finished_once`, run by `pspnet retrain` with tracking."""

    def make(folder: Path) -> None:
        checkout(folder, **LENIENT)
        run(folder, *SYNTHESIZE)
        copy_tables(prefects_tables, folder / ".pspnet/prefect")
        said = run(folder, "pspnet", "retrain", **warmed(stand_ins) | {"COLUMNS": "200", "PSPNET_TRACKING": "on"})
        assert left(folder) == []
        (folder / ".pspnet/retrain.log").write_text(said)

    return made_once(shared / "e2e/retrained", make)


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path) -> Path:
    return copied(finished_once, tmp_path / "finished")


@pytest.fixture
def registered(registered_once: Path, tmp_path: Path) -> Path:
    return copied(registered_once, tmp_path / "registered")


@pytest.fixture
def retrained(retrained_once: Path, tmp_path: Path) -> Path:
    return copied(retrained_once, tmp_path / "retrained")
