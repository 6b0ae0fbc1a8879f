"""Whose process this is, and what ties it to the one that started it."""

import ctypes
import getpass
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


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
