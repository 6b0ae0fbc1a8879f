"""Run training on its device: precision, compilation, seeds, loader processes and the lock."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from pspnet.config.runtime import RuntimeParams
from pspnet.errors import Problem, UserError
from pspnet.machine.process import exclusive_on_machine


def autocast(device: torch.device, runtime: RuntimeParams) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=runtime.precision == "bf16")


def compiled(module: nn.Module, runtime: RuntimeParams) -> Callable[..., Any]:
    """Call the result instead of `module`. The two share their weights."""
    return torch.compile(module) if runtime.compile else module


def seed_step(seed: int, step: int, rank: int, part: int) -> None:
    """Seed dropout from the step, the device and the part, so that a resumed run needs no generator state."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank, part]).generate_state(1, np.uint64)[0] >> 1))


def loader_workers() -> int:
    """Return the number of processes that decode and augment. It does not affect results, so it is a machine
    setting.
    """
    setting = os.environ.get("PSPNET_LOADER_WORKERS")
    if setting is None:
        return min(8, (os.cpu_count() or 2) // 2 // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if not setting.isdigit():
        raise UserError(Problem("PSPNET_LOADER_WORKERS", f"is '{setting}'", "a whole number, 0 or more"))
    return int(setting)


def device_lock(device: torch.device) -> AbstractContextManager[None]:
    """Lock the GPU: two runs on the same GPU would slow each other down or run out of memory. A CPU can be shared."""
    if device.type != "cuda":
        return nullcontext()
    return exclusive_on_machine(f"pspnet-gpu-{torch.cuda.get_device_properties(device).uuid}", "this GPU")
