"""Training on several devices: torchrun starts the same command once per device."""

import json
import logging
import os
import signal
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

from pspnet.errors import Problem, UserError
from pspnet.machine.process import LAUNCHER, STOP_SECONDS, end_with_dvc

SHUTDOWN_SECONDS = STOP_SECONDS - 5  # torchrun gives processes this long to end: they save a checkpoint first
# How processes end, likely causes first: when one fails, the others lose it and are ended.
ENDS = ("user", "memory", "bug", "busy", "killed", "interrupted", "done")


def devices() -> int:
    """The number of devices that share the images of a step. It affects the last digits of results."""
    setting = os.environ.get("PSPNET_DEVICES", "1")
    if not setting.isdigit() or int(setting) < 1:
        raise UserError(Problem("PSPNET_DEVICES", f"is '{setting}'", "a whole number, 1 or more"))
    return int(setting)


def exit_file(folder: Path, stage: str, rank: int) -> Path:
    """The file in which a process records why it ended; the first process's counts for the stage."""
    return folder / (f"{stage}-{rank}.json" if rank else f"{stage}.json")


def launch(stage: str, count: int, exits: Path) -> int:
    """Run this process's own command in `count` processes, with the output of the first; returns the exit status."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    end_with_dvc()
    os.environ[LAUNCHER] = str(os.getpid())
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # otherwise torch warns about find_unused_parameters
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_SECONDS))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # each process reports how it ended
    for rank in range(count):
        exit_file(exits, stage, rank).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="pspnet-") as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(logs, redirects=dict.fromkeys(range(1, count), Std.ALL)),
        )
        try:
            elastic_launch(config, sys.executable)(*sys.argv)
        except (ChildFailedError, SignalException) as error:
            return blame(stage, count, exits, Path(logs), asked=isinstance(error, SignalException))
    return 0


def blame(stage: str, count: int, exits: Path, logs: Path, asked: bool) -> int:
    """Report the end of the process at fault as the stage's end. Being slow to end when `asked` is not a cause."""
    ends = [_end(exit_file(exits, stage, rank)) for rank in range(count)]
    if asked and ends[0]["class"] == "interrupted":
        ends = [ends[0] if end["class"] == "killed" else end for end in ends]
    rank = min(range(count), key=lambda rank: ENDS.index(ends[rank]["class"]))
    if rank != 0:
        exit_file(exits, stage, 0).unlink(missing_ok=True)
        if ends[rank]["class"] != "killed":
            exit_file(exits, stage, rank).replace(exit_file(exits, stage, 0))
        output = "".join(log.read_text(errors="replace") for log in logs.glob(f"*/attempt_0/{rank}/stderr.log"))
        sys.stderr.write(f"{stage}, device {rank}: {ends[rank]['class']}\n{output}")
    return int(ends[rank]["exit"])


def _end(path: Path) -> dict[str, Any]:
    try:
        end: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"class": "killed", "exit": 128 + signal.SIGKILL}
    return end
