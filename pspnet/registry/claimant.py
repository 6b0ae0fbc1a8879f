"""The process that claimed a move: how to identify it, and whether it is gone."""

import os
import socket
from pathlib import Path

import psutil

from pspnet.machine.process import is_alive
from pspnet.registry.records import Move


def pid() -> str:
    """Return the pid and start time of this process. Unlike a bare pid, the pair is never reused on this system."""
    return f"{os.getpid()}@{psutil.Process().create_time():.2f}"


def system() -> str:
    """Return an id that is the same for processes that can see each other: same boot, same kernel, same container.

    A host name would not work, because two containers can share one.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def is_gone(move: Move) -> bool:
    """Return whether the move's process has ended; always False for a process on another system."""
    if not move.pid or move.system != system():
        return False
    number, _, created = move.pid.partition("@")
    return not is_alive(int(number), float(created))
