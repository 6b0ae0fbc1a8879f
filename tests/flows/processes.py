"""Processes of this machine, found by where they work and what they were given."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

GONE_SECONDS = 20.0


def of(folder: Path) -> list[psutil.Process]:
    """Who works in the folder, or has it in its environment."""
    found = []
    for process in psutil.process_iter():
        try:
            named = any(value.startswith(str(folder)) for value in process.environ().values())
            there = named or Path(process.cwd()).is_relative_to(folder)
            if there and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def left(folder: Path, seconds: float = GONE_SECONDS) -> list[list[str]]:
    """The commands of those that are still there after a moment, which who was killed just now may take."""
    return alive(lambda: of(folder), seconds)


def left_of(family: Sequence[psutil.Process]) -> list[list[str]]:
    return alive(lambda: family, GONE_SECONDS)


def alive(processes: Callable[[], Iterable[psutil.Process]], seconds: float) -> list[list[str]]:
    deadline = time.monotonic() + seconds
    while (commands := [command for one in processes() if (command := cmdline(one))]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return commands


def cmdline(process: psutil.Process) -> list[str]:
    """Nothing if it has ended, whether or not somebody has asked how."""
    try:
        return process.cmdline() if process.is_running() else []
    except psutil.NoSuchProcess:
        return []


def kill_all(folder: Path) -> None:
    for process in of(folder):
        with suppress(psutil.NoSuchProcess):
            process.kill()
