"""Finds processes on this machine by their working folder and environment."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

GONE_SECONDS = 20.0


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return the processes that work in the folder or have the folder in their environment."""
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
    """Return the commands of processes still running after a few seconds. A killed process may need a moment to end."""
    return alive(lambda: processes_of(folder), seconds)


def left_of(family: Sequence[psutil.Process]) -> list[list[str]]:
    return alive(lambda: family, GONE_SECONDS)


def alive(processes: Callable[[], Iterable[psutil.Process]], seconds: float) -> list[list[str]]:
    deadline = time.monotonic() + seconds
    while (commands := list(filter(None, map(cmdline, processes())))) and time.monotonic() < deadline:
        time.sleep(0.05)
    return commands


def cmdline(process: psutil.Process) -> list[str]:
    """Return the process's command line. It is empty if the process has ended, whether reaped or not."""
    try:
        return process.cmdline() if process.is_running() else []
    except psutil.NoSuchProcess:
        return []


def kill_all(folder: Path) -> None:
    for process in processes_of(folder):
        with suppress(psutil.NoSuchProcess):
            process.kill()
