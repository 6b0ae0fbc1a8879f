from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.server import PrefectServer, prefect_server


@pytest.fixture(scope="session")
def prefect(shared: Path) -> Iterator[PrefectServer]:
    with prefect_server(shared / "prefect") as server:
        yield server
