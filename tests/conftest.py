import gc
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from pspnet.offline import go_offline
from tests import warm
from tests.files import made_once
from tests.sharing import shared_server

go_offline()
# Before torch is loaded: the threads of several processes wait for each other, which costs five times the CPU time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("COLUMNS", None)  # xdist sets it, and rich's consoles keep the width that they were made with
# The same examples in every run; the first may take its time, to load what the others have.
settings.register_profile("ours", derandomize=True, deadline=None)
settings.load_profile("ours")

SLOW = ("e2e", "kills", "team")  # the tiers whose tests start processes
CHEAP = ("git", "ldconfig", "uname")  # milliseconds; the last two: of torch as it loads, of MLflow


class Guard:
    """A test of `make test` starts no process, and neither do its fixtures."""

    on = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and event == "subprocess.Popen" and Path(os.fsdecode(arguments[0])).name not in CHEAP:
            raise RuntimeError(
                f"A test of `make test` starts {arguments[1]}: call it in-process, or mark the test e2e."
            )


guard = Guard()
sys.addaudithook(guard)


def pytest_collection_finish() -> None:
    gc.freeze()  # what is loaded by now stays: no collection looks at it again


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    guard.on = not any(item.get_closest_marker(tier) for tier in SLOW)
    try:
        return (yield)
    finally:
        guard.on = False


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown() -> None:
    guard.on = False  # servers that other tests have started are stopped after the last test, whichever it is


@pytest.fixture(autouse=True)
def _no_tracking_server_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """`connect` sets the address for the rest of the process, which is here that of many tests."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all of pytest's processes share: for `tests.files.made_once`."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"


@pytest.fixture(scope="session")
def warm_python(shared: Path) -> Iterator[str]:
    """Takes the place of `sys.executable`; see `tests.warm`."""
    with shared_server(shared / "warm", warm.start, warm.stop) as folder:
        yield str(folder / "python")


@pytest.fixture(scope="session")
def prefects_tables(shared: Path) -> Path:
    """A home of Prefect in which its database has all tables: to copy."""
    from tests.flows.server import make_tables  # loads Prefect

    return made_once(shared / "flows/prefect", make_tables)


@pytest.fixture(scope="session")
def stand_ins(warm_python: str) -> Path:
    """A folder for the PATH: its `pspnet` and `dvc` start at once, and end when all that works in their checkout is
    killed. A test of signals or process trees, and so of DVC killed alone, needs the real commands.
    """
    return Path(warm_python).parent
