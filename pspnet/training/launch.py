"""Training on several devices: torchrun starts the same command once per device."""

import logging
import os
import signal
import sys
import tempfile
import uuid
from pathlib import Path

from pspnet.errors import Problem, UserError
from pspnet.machine import events
from pspnet.machine.process import LAUNCHER, STOP_SECONDS, end_with_dvc

SHUTDOWN_SECONDS = STOP_SECONDS - 5  # torchrun gives processes this long to save a checkpoint and end
# How a process can end, likely causes first. When one process fails, the others lose contact with it and are stopped.
ENDS = ("user", "memory", "bug", "busy", "killed", "interrupted", "done")


def devices() -> int:
    """Return the number of devices that share the images of a step. It affects the last digits of results."""
    setting = os.environ.get("PSPNET_DEVICES", "1")
    if not setting.isdigit() or int(setting) < 1:
        raise UserError(Problem("PSPNET_DEVICES", f"is '{setting}'", "a whole number, 1 or more"))
    return int(setting)


def launch(stage: str, count: int, log: Path) -> int:
    """Run this process's own command in `count` processes, show the output of the first, and return the exit status.

    `log` is their shared event log, where they report how they ended.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    end_with_dvc()
    os.environ[LAUNCHER] = str(os.getpid())
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # otherwise torch warns about find_unused_parameters
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_SECONDS))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # each process reports how it ended
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
            return blame(stage, count, log, Path(logs), asked=isinstance(error, SignalException))
    return 0


def blame(stage: str, count: int, log: Path, logs: Path, asked: bool) -> int:
    """Report the exit of the process at fault as the exit of the stage. A process that is slow to end when `asked` is
    not at fault.
    """
    killed = {"class": "killed", "status": 128 + signal.SIGKILL}  # it wrote no exit event
    told = {event.get("rank"): event for event, _ in events.read(log) if event["kind"] == "exit"}
    ends = [told.get(rank, killed) for rank in range(count)]
    if asked and ends[0]["class"] == "interrupted":
        ends = [ends[0] if end["class"] == "killed" else end for end in ends]
    rank = min(range(count), key=lambda rank: ENDS.index(ends[rank]["class"]))
    end = ends[rank]
    if end["class"] != "killed":
        events.append(log, events.event("exit", **{name: end[name] for name in ("class", "status", "message")}))
    if rank != 0:
        output = "".join(log.read_text(errors="replace") for log in logs.glob(f"*/attempt_0/{rank}/stderr.log"))
        sys.stderr.write(f"{stage}, device {rank}: {end['class']}\n{output}")
    return int(end["status"])
