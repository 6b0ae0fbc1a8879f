from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.registry.databases import postgresql


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a database for MLflow."""
    if request.param == "postgresql":
        with postgresql() as uri:
            yield uri
    else:
        yield f"sqlite:///{tmp_path_factory.mktemp('sqlite')}/mlflow.db"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / ".pspnet"
