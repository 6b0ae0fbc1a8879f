"""Processes that train together as under torchrun. They are forked, because torch takes seconds to load."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pspnet.cli import main
from tests.command import PSPNET
from tests.forked import FORKED
from tests.network import free_port


def started_together(count: int, target: Callable[..., object], *arguments: Any) -> list[BaseProcess]:
    """Start the processes on this machine as torchrun does."""
    shared = {
        "TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "TORCH_CPP_LOG_LEVEL": "ERROR",
    }  # fmt: skip
    processes: list[BaseProcess] = []
    for rank in range(count):
        environment = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(FORKED.Process(target=_within, args=(environment, target, *arguments)))
        processes[-1].start()
    return processes


def _within(environment: dict[str, str], target: Callable[..., object], *arguments: Any) -> None:
    multiprocessing.set_start_method(None, force=True)  # so that the loaders start as in a process that is not forked
    os.environ.update(environment)
    target(*arguments)


def command(words: tuple[str, ...], folder: Path, environment: dict[str, str]) -> None:
    """Run `pspnet` in this process, with its output in one file per rank."""
    os.environ.update(environment)
    os.chdir(folder)
    log = os.open(folder / f"log-{os.environ.get('RANK', '')}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = [PSPNET, *words]
    main()


def statuses(processes: list[BaseProcess], seconds: float = 120) -> list[int | None]:
    """Return the exit statuses, with None for each process that had to be killed."""
    for process in processes:
        process.join(seconds)
    ends = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return ends
