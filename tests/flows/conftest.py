from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.server import PrefectServer, copy_tables, prefect_server


@pytest.fixture(scope="session")
def prefect(
    tmp_path_factory: pytest.TempPathFactory, prefects_tables: Path, warm_python: str
) -> Iterator[PrefectServer]:
    home = tmp_path_factory.mktemp("prefect")
    copy_tables(prefects_tables, home)
    with prefect_server(home, warm_python) as server:
        yield server
