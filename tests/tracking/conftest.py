import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.files import made_once
from tests.tracking.server import Server


@pytest.fixture(scope="session")
def _server(tmp_path_factory: pytest.TempPathFactory, warm_python: str) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("mlflow"), warm_python)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def server(_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server process that is running when the test begins, even if the previous test stopped it."""
    _server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", _server.uri)
    return _server


@pytest.fixture(scope="session")
def empty_database(shared: Path) -> Path:
    """An empty MLflow database, created once because MLflow takes a second to create one."""

    def make(folder: Path) -> None:
        uri = f"sqlite:///{folder}/mlflow.db"
        MlflowClient(uri, registry_uri=uri).search_experiments(max_results=1)

    return made_once(shared / "tracking/empty_database", make) / "mlflow.db"


@pytest.fixture
def database(empty_database: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty database that only this test uses, opened in pytest's process."""
    state.mkdir(exist_ok=True)
    shutil.copy(empty_database, state / "mlflow.db")
    uri = f"sqlite:///{state}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@pytest.fixture(params=["sqlite", pytest.param("http", marks=pytest.mark.e2e)])
def client(request: pytest.FixtureRequest) -> MlflowClient:
    """A client of a database in this process and, in `make test-e2e`, also a client of a server."""
    if request.param == "http":
        return MlflowClient(request.getfixturevalue("server").uri)
    return MlflowClient(request.getfixturevalue("database"))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / ".pspnet"
