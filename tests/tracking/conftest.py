from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.tracking.server import Server


@pytest.fixture(scope="session")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("mlflow"))
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def server(_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """It runs when a test begins, whatever the last one did to it."""
    _server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", _server.uri)
    return _server


@pytest.fixture
def client(server: Server) -> MlflowClient:
    return MlflowClient(server.uri)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / ".pspnet"
