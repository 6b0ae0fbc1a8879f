"""DVC in this process: much quicker than its command, for tests that are not about the command."""

from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

from dvc.repo import Repo
from tqdm import tqdm  # type: ignore[import-untyped]

tqdm.monitor_interval = 0  # no thread that later tests would fork


@contextmanager
def dvc(folder: Path) -> Iterator[Repo]:
    """The repository, while this process works in the folder: DVC names files as seen from there."""
    with chdir(folder), Repo(str(folder)) as repo:
        yield repo
