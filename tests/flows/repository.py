"""Calls DVC in this process, which is much faster than running the `dvc` command, for tests that are not about the
command.
"""

from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

from dvc.repo import Repo
from tqdm import tqdm  # type: ignore[import-untyped]

tqdm.monitor_interval = 0  # otherwise tqdm starts a thread, which makes later forks unsafe


@contextmanager
def dvc(folder: Path) -> Iterator[Repo]:
    """Yield the repository, with the folder as the working directory, because DVC's file names are relative to that
    directory.
    """
    with chdir(folder), Repo(str(folder)) as repo:
        yield repo
