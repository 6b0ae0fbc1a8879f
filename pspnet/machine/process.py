"""Processes: parents and children, signals, locks, ranks and garbage collection."""

import atexit
import ctypes
import errno
import gc
import getpass
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import TYPE_CHECKING

import filelock

from pspnet.errors import Busy, Problem, UserError

if TYPE_CHECKING:
    import psutil  # a machine that only trains may not have it

_PR_SET_PDEATHSIG = 1
_TORCHRUN = "TORCHELASTIC_RUN_ID"  # environment variable set in processes that torchrun starts
LAUNCHER = "PSPNET_LAUNCHER"  # environment variable in those processes with the id of our process that runs torchrun
LOCK_WAIT_SECONDS = 60  # an orphaned run may still be writing its last checkpoint
STOP_SECONDS = 60  # long enough for training to save its checkpoint first
WATCH_SECONDS = 0.5
POLL_SECONDS = 0.05
CLOCK_SECONDS = 5.0  # allowance for clock adjustments
GARBAGE = 20_000  # allocated objects before a collection; Python's default is 700


def collect_less_garbage() -> None:
    """Collect garbage rarely, and not at exit.

    MLflow and torch create a million objects that are never freed. Scanning them repeatedly while they load, and three
    times at exit, takes as long as loading them.
    """
    gc.set_threshold(GARBAGE)
    atexit.register(_skip_last_collection)


def _skip_last_collection() -> None:
    gc.freeze()
    if "triton" in sys.modules:  # torch loads it for an optimizer; at exit it prints pages about unfreed objects
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def is_alive(number: int, created: float) -> bool:
    """Return whether the process with this id and creation time is still alive. Process ids are reused."""
    import psutil

    try:
        process = psutil.Process(number)
        same = abs(process.create_time() - created) < CLOCK_SECONDS
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def family(number: int) -> "list[psutil.Process]":
    """Return the process with this id and its descendants. Descendants are missed if their parent has ended."""
    import psutil

    try:
        first = psutil.Process(number)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def end_all(processes: "Sequence[psutil.Process]", seconds: float = STOP_SECONDS) -> None:
    """Terminate the roots of the process trees, which pass the signal on. Kill whatever survives."""
    import psutil

    numbers = {process.pid for process in processes}
    for process in [process for process in processes if _parent(process) not in numbers]:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, left = psutil.wait_procs(processes, seconds)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _parent(process: "psutil.Process") -> int | None:
    import psutil

    with suppress(psutil.NoSuchProcess):
        return process.ppid()
    return None


def rank() -> int:
    """Return the rank of this process among the processes that torchrun started. Only rank 0 does anything other than
    training.
    """
    return int(os.environ["RANK"]) if _TORCHRUN in os.environ else 0


def ranks() -> int:
    """Return the number of processes that torchrun started."""
    return int(os.environ["WORLD_SIZE"]) if _TORCHRUN in os.environ else 1


def user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user in a container may have no name
        return f"user {os.getuid()}"


def die_with_parent(death_signal: signal.Signals, parent: int | None = None) -> None:
    """Have the kernel send us `death_signal` when our parent ends, for whatever reason. Linux only.

    `parent` is the id of the parent that started us, if known. It may have ended already.
    """
    if sys.platform != "linux":
        return
    parent = os.getppid() if parent is None else parent
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, death_signal)
    if os.getppid() != parent:  # the parent died before the request took effect
        os.kill(os.getpid(), death_signal)


def end_with_dvc() -> None:
    """Send SIGTERM to this process, which runs a stage, when DVC ends for whatever reason. Linux only.

    A shell between DVC and us would hide that DVC has ended (dash, if SHELL is not set, as in a service).
    """
    if sys.platform != "linux" or "DVC_STAGE" not in os.environ:
        return
    parent = os.getppid()
    dvc = _outside_of_stage(parent)
    if dvc == parent:
        die_with_parent(signal.SIGTERM, parent)
        return

    def watch() -> None:
        while dvc and _outside_of_stage(parent) == dvc:
            time.sleep(WATCH_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    Thread(target=watch, name="watches DVC", daemon=True).start()


def _outside_of_stage(process: int) -> int:
    """Return the id of the nearest ancestor that does not belong to a stage, or 0 if it has ended.

    Processes of a stage have DVC_STAGE in their environment. A process gets a new parent as soon as its old parent
    ends.
    """
    try:
        while b"DVC_STAGE=" in Path(f"/proc/{process}/environ").read_bytes():
            status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
            process = int(re.findall(r"^PPid:\s*(\d+)", status, re.MULTILINE)[0])
    except (FileNotFoundError, ProcessLookupError):
        return 0
    except PermissionError:  # the process belongs to another user
        pass
    return process


def die_with_launcher() -> None:
    """Kill this training process when its launcher ends. A process that is waiting for its peers would ignore
    SIGTERM.
    """
    launcher = os.environ.get(LAUNCHER)
    die_with_parent(signal.SIGKILL, int(launcher) if launcher else None)


@contextmanager
def on_stop_request(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Call the handler on Ctrl-C and SIGTERM within the block."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


@contextmanager
def exclusive(path: Path, what: str, seconds: float = LOCK_WAIT_SECONDS) -> Iterator[None]:
    """Hold a lock file. The system releases the lock when this process ends, for whatever reason."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=seconds)
    except PermissionError:
        fix = "Ask its owner, or work in your own checkout."
        raise UserError(Problem(str(path), "is not writable by this user", "our own lock file", fix)) from None
    except filelock.Timeout:
        raise Busy(f"Another process is using {what} ({path}). Wait for it or stop it, then try again.") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def exclusive_on_machine(name: str, what: str, seconds: float = LOCK_WAIT_SECONDS) -> Iterator[None]:
    """Hold a lock that all users of this machine share: a socket name, which Linux releases when the process ends.

    A lock file would be left behind and would belong to the user who created it.
    """
    with socket.socket(socket.AF_UNIX) as holder:
        until = time.monotonic() + seconds
        while True:
            try:
                holder.bind(f"\0{name}")
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            if time.monotonic() >= until:
                raise Busy(f"Another process is using {what}. Wait for it or stop it, then try again.")
            time.sleep(POLL_SECONDS)
        yield
