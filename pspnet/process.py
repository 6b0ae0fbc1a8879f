"""Whose process this is, and what ties it to the one that started it."""

import ctypes
import getpass
import os
import signal
import sys

import psutil

_PR_SET_PDEATHSIG = 1


CLOCK_SECONDS = 5.0  # by which a clock may have been set since


def is_alive(number: int, created: float) -> bool:
    """Whether the process of this number is still the one that was created then: numbers are given again."""
    try:
        process = psutil.Process(number)
        same = abs(process.create_time() - created) < CLOCK_SECONDS
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"user {os.getuid()}"


def die_with_parent(death_signal: signal.Signals) -> None:
    """Have the kernel send us `death_signal` when our parent is gone, however it went (Linux; elsewhere nothing)."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, death_signal)
    if os.getppid() != parent:  # it died before the request took effect
        os.kill(os.getpid(), death_signal)
