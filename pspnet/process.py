"""Whose process this is, what ties it to the one that started it, and what it has for itself."""

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
    import psutil  # which a machine for training alone may lack

_PR_SET_PDEATHSIG = 1
_TORCHRUN = "TORCHELASTIC_RUN_ID"  # in the environment of what it starts
LAUNCHER = "PSPNET_LAUNCHER"  # in the same environment: our process that torchrun runs in
LOCK_WAIT_SECONDS = 60  # an orphaned run may still be writing its last checkpoint
STOP_SECONDS = 60  # a training saves its checkpoint first
WATCH_SECONDS = 0.5
LOOK_SECONDS = 0.05
CLOCK_SECONDS = 5.0  # by which a clock may have been set since
GARBAGE = 20_000  # objects, where Python says 700


def collect_less_garbage() -> None:
    """MLflow and torch leave a million objects that stay. To go through them again and again while they are loaded, and
    three times at the end, takes as long as loading them.
    """
    gc.set_threshold(GARBAGE)
    atexit.register(gc.freeze)


def is_alive(number: int, created: float) -> bool:
    """Whether the process of this number is still the one that was created then: numbers are given again."""
    import psutil

    try:
        process = psutil.Process(number)
        same = abs(process.create_time() - created) < CLOCK_SECONDS
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def family(number: int) -> "list[psutil.Process]":
    """The process of this number and all that came from it, as long as nobody between them has ended."""
    import psutil

    try:
        first = psutil.Process(number)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def end_all(processes: "Sequence[psutil.Process]", seconds: float = STOP_SECONDS) -> None:
    """Who is nobody's child among them is asked to end, the others get what it passes on; who is left is killed."""
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
    """Which of the processes this is that torchrun has started for a training. The first does all but train alone."""
    return int(os.environ["RANK"]) if _TORCHRUN in os.environ else 0


def ranks() -> int:
    """How many they are."""
    return int(os.environ["WORLD_SIZE"]) if _TORCHRUN in os.environ else 1


def user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"user {os.getuid()}"


def die_with_parent(death_signal: signal.Signals, parent: int | None = None) -> None:
    """Have the kernel send us `death_signal` when our parent is gone, however it went (Linux; elsewhere nothing).

    `parent`: who it was when we were started, where that is known: it may be gone by now.
    """
    if sys.platform != "linux":
        return
    parent = os.getppid() if parent is None else parent
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, death_signal)
    if os.getppid() != parent:  # it died before the request took effect
        os.kill(os.getpid(), death_signal)


def end_with_dvc() -> None:
    """For a process of a stage: have SIGTERM sent to us when DVC is gone, however it went (Linux; elsewhere nothing).

    Between DVC and us there may be a shell, which takes no notice (dash, where SHELL is not set, as in a service).
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
    """The nearest of this process and its ancestors that is no part of a stage (those have DVC_STAGE); 0: it has ended.

    The child of one that has ended, reaped or not, has another parent.
    """
    try:
        while b"DVC_STAGE=" in Path(f"/proc/{process}/environ").read_bytes():
            status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
            process = int(re.findall(r"^PPid:\s*(\d+)", status, re.MULTILINE)[0])
    except (FileNotFoundError, ProcessLookupError):
        return 0
    except PermissionError:  # another user's
        pass
    return process


def die_with_launcher() -> None:
    """Of several processes that train together: at once, as who waits for another takes no notice of a request."""
    launcher = os.environ.get(LAUNCHER)
    die_with_parent(signal.SIGKILL, int(launcher) if launcher else None)


@contextmanager
def on_stop_request(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Within the block Ctrl-C and SIGTERM call the handler."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


@contextmanager
def exclusive(path: Path, what: str, seconds: float = LOCK_WAIT_SECONDS) -> Iterator[None]:
    """Hold a lock file; the system lets go of it when this process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=seconds)
    except PermissionError:
        fix = "Ask its owner, or work in a checkout of your own."
        raise UserError(Problem(str(path), "may not be written by this user", "a lock of our own", fix)) from None
    except filelock.Timeout:
        raise Busy(f"Another process is using {what} ({path}). Wait for it or stop it, then try again.") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def exclusive_on_machine(name: str, what: str, seconds: float = LOCK_WAIT_SECONDS) -> Iterator[None]:
    """The same among all users of this machine, by a name that Linux keeps as long as a process holds it. A lock file
    would stay behind, and belong to the user who made it.
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
            time.sleep(LOOK_SECONDS)
        yield
