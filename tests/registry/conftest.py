import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.files import made_once
from tests.registry import databases
from tests.sharing import shared_server

EMPTY = "mlflow"  # a database that contains only MLflow's tables


@pytest.fixture(scope="session")
def sqlite(shared: Path) -> Path:
    return made_once(shared / "registry/sqlite", lambda folder: databases.prepare(f"sqlite:///{folder}/{EMPTY}.db"))


@pytest.fixture(scope="session")
def postgresql(shared: Path) -> Iterator[Path]:
    def start(folder: Path) -> None:
        databases.start(folder)
        databases.create(folder, EMPTY)
        databases.prepare(databases.address(folder, EMPTY))

    with shared_server(shared / "registry/postgresql", start, databases.stop) as folder:
        yield folder


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.e2e)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a new MLflow database for each test."""
    if request.param == "postgresql":
        return databases.copy(request.getfixturevalue("postgresql"), EMPTY)
    shutil.copyfile(request.getfixturevalue("sqlite") / f"{EMPTY}.db", tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / ".pspnet"
