"""A server shared by all pytest processes: the first process that needs the server starts it, and the last one stops
it.
"""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock


@contextmanager
def shared_server(folder: Path, start: Callable[[Path], None], stop: Callable[[Path], None]) -> Iterator[Path]:
    """Yield the folder to which `start` has written everything needed to reach the server."""
    folder.mkdir(parents=True, exist_ok=True)
    running = folder / "running"
    with (folder / "users").open("w") as users:  # each user's lock on this file ends with its process
        with filelock.FileLock(folder / "lock"):
            fcntl.flock(users, fcntl.LOCK_SH)
            if not running.exists():
                start(folder)
                running.touch()
        try:
            yield folder
        finally:
            with filelock.FileLock(folder / "lock"):
                try:
                    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    pass  # another process still uses the server
                else:
                    running.unlink()
                    stop(folder)
