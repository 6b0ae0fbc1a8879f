import gc
import os
import sys
from collections.abc import Generator, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from pspnet.machine.offline import go_offline
from tests import warm
from tests.files import made_once
from tests.sharing import shared_server

go_offline()
# This must be set before torch is imported. Otherwise, the threads of several processes would wait for each other and
# use 5 times the CPU time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("COLUMNS", None)  # xdist sets it, and rich's consoles keep the width that they were created with
# Use the same examples in every run, without a deadline: the first example may have to import packages.
settings.register_profile("ours", derandomize=True, deadline=None)
settings.load_profile("ours")

SLOW = ("e2e", "kills", "team")  # the tiers whose tests start processes
CHEAP = ("git", "ldconfig", "uname")  # these take milliseconds; torch and MLflow start the last two when imported


class Guard:
    """Raises an error if a `make test` test or one of its fixtures starts a process."""

    on = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and event == "subprocess.Popen" and Path(os.fsdecode(arguments[0])).name not in CHEAP:
            raise RuntimeError(
                f"A test of `make test` starts {arguments[1]}: call the function in this process, or mark the test e2e."
            )


guard = Guard()
sys.addaudithook(guard)


def pytest_collection_finish() -> None:
    gc.freeze()  # garbage collections then skip the loaded modules


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    guard.on = not any(item.get_closest_marker(tier) for tier in SLOW)
    try:
        return (yield)
    finally:
        guard.on = False


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown() -> None:
    guard.on = False  # whichever test runs last also stops servers started by other tests


@pytest.fixture(autouse=True)
def _no_tracking_server_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """`connect` sets the address for the whole process, which also runs many other tests."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder shared by all pytest processes, for `tests.files.made_once`."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"


@pytest.fixture(scope="session")
def warm_python(shared: Path) -> Iterator[str]:
    """A program that replaces `sys.executable`. See `tests.warm`."""
    with shared_server(shared / "warm", warm.start, warm.stop) as folder:
        yield str(folder / "python")


@pytest.fixture(scope="session")
def prefects_tables(request: pytest.FixtureRequest, warm_python: str) -> Path:
    """A Prefect home folder whose database has all tables, to be copied. Later runs of pytest use it too."""
    from tests.flows.server import make_tables  # loads Prefect

    folder = request.config.cache.mkdir(f"prefect-{version('prefect')}") / "home"
    return made_once(folder, lambda home: make_tables(home, warm_python))


@pytest.fixture(scope="session")
def stand_ins(warm_python: str) -> Path:
    """A folder for the PATH, with versions of `pspnet` and `dvc` that start instantly.

    If every process that works in a checkout is killed, its `pspnet` and `dvc` end too. Tests of signals or process
    trees, including those that kill only DVC, need the real commands.
    """
    return Path(warm_python).parent
