"""Checkpoints: a killed run resumes from a single, atomically replaced file as if nothing had happened.

The file is not one of the outputs that DVC removes before each run. Its folder is named after everything the weights
depend on, so with different params, data or code, training finds no checkpoint and starts over.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from pydantic import BaseModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from pspnet.errors import Interrupted, Problem, UserError
from pspnet.machine.code import WEIGHTS, code_digest
from pspnet.machine.outputs import whole_file
from pspnet.machine.process import exclusive, rank, ranks

KEPT = 3  # number of newest checkpoints kept for a stage; people rarely go back further
PACKAGES = ("torch", "numpy", "albumentations", "opencv-python-headless", "pillow")

Record = dict[str, float]


@dataclass
class TrainingState:
    module: nn.Module
    optimizer: Optimizer
    step: int = 0
    records: list[Record] = field(default_factory=list)  # one per pretraining epoch or fine-tuning validation
    sums: Record = field(default_factory=dict)  # sums over the steps since the last record
    best: dict[str, Tensor] = field(default_factory=dict)  # the best weights on val
    average: nn.Module | None = None  # moving average of the weights, if one is kept


def training_digest(
    stage: str, sections: Mapping[str, BaseModel], dependencies: Mapping[str, str], device: torch.device
) -> str:
    """Return the digest of everything that determines the weights: params, data, backbone, libraries, and the stage's
    code.
    """
    facts = {
        "params": {name: section.model_dump() for name, section in sections.items()},
        "dependencies": {**dependencies, "device": device.type, "devices": str(ranks())},
        "packages": {name: version(name) for name in PACKAGES},
        "code": code_digest(WEIGHTS[stage]),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


class Checkpoint:
    """One of the processes that train together writes the checkpoint, and all of them read it."""

    def __init__(self, folder: Path, writes: bool = True) -> None:
        self.folder, self._writes = folder, writes
        self._path = folder / "state.safetensors"
        self._seconds = _seconds_between()
        self._saved, self._took = time.monotonic(), 0.0

    def restore(self, state: TrainingState) -> None:
        """Fill `state` from the checkpoint file, if there is one."""
        if not self._path.exists():
            return
        with safe_open(self._path, "pt") as file:
            facts = json.loads(file.metadata()["state"])
            tensors: dict[str, dict[str, Tensor]] = {"module": {}, "optimizer": {}, "best": {}, "average": {}}
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                kind, _, name = key.partition("/")
                tensors[kind][name] = file.get_tensor(key)
        state.module.load_state_dict(tensors["module"])
        if state.average is not None:
            state.average.load_state_dict(tensors["average"])
        optimizer = state.optimizer.state_dict()
        optimizer["state"] = {}
        for name, tensor in tensors["optimizer"].items():
            parameter, _, key = name.partition("/")
            optimizer["state"].setdefault(int(parameter), {})[key] = tensor
        state.optimizer.load_state_dict(optimizer)
        for weight, values in state.optimizer.state.items():
            for key, value in values.items():
                if isinstance(value, Tensor) and value.shape == weight.shape:  # give it the weight's memory layout
                    values[key] = torch.empty_like(weight).copy_(value)
        state.best = tensors["best"]
        state.step, state.records, state.sums = facts["step"], facts["records"], facts["sums"]

    def save(self, state: TrainingState) -> None:
        if not self._writes:
            return
        tensors = {f"module/{name}": tensor for name, tensor in state.module.state_dict().items()}
        tensors |= {f"best/{name}": tensor for name, tensor in state.best.items()}
        if state.average is not None:
            tensors |= {f"average/{name}": tensor for name, tensor in state.average.state_dict().items()}
        for parameter, values in state.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{parameter}/{key}": torch.as_tensor(value) for key, value in values.items()}
        facts = json.dumps({"step": state.step, "records": state.records, "sums": state.sums})
        started = time.monotonic()
        with whole_file(self._path, sum(tensor.nbytes for tensor in tensors.values())) as path:
            save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path, {"state": facts})
        self._saved = time.monotonic()
        self._took = self._saved - started

    def save_if_due(self, state: TrainingState) -> None:
        """Save if the interval has passed. A slow disk lengthens the interval, so that saving takes at most a twentieth
        of the time.
        """
        if time.monotonic() - self._saved > max(self._seconds, 20 * self._took):
            self.save(state)

    @contextmanager
    def kept_when_interrupted(self, state: TrainingState) -> Iterator[None]:
        """Save the state if the block is interrupted. Only `tick` interrupts, while the state is consistent."""
        try:
            yield
        except Interrupted as stop:
            self.save(state)
            message = f"Stopped after step {state.step}, which is saved. The same command continues from there."
            raise Interrupted(stop.exit_status, message) from None


def _seconds_between() -> float:
    setting = os.environ.get("PSPNET_CHECKPOINT_SECONDS", "30")
    try:
        return float(setting)
    except ValueError:
        raise UserError(Problem("PSPNET_CHECKPOINT_SECONDS", f"is '{setting}'", "a number of seconds")) from None


@contextmanager
def open_checkpoint(root: Path, stage: str, digest: str) -> Iterator[Checkpoint]:
    folder = root / f"{stage}-{digest}"
    if rank() != 0:  # the first process holds the lock for all of them
        yield Checkpoint(folder, writes=False)
        return
    with exclusive(folder / "lock", "this checkpoint"):
        _prune(root, stage, folder)
        yield Checkpoint(folder)


def _prune(root: Path, stage: str, current: Path) -> None:
    others = [folder for folder in root.glob(f"{stage}-*") if folder != current]
    others.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
    for folder in others[KEPT - 1 :]:
        shutil.rmtree(folder, ignore_errors=True)
