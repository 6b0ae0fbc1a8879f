"""The device to compute on, set up to reproduce the same bits."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from pspnet.config.runtime import RuntimeParams
from pspnet.errors import Problem, UserError
from pspnet.machine.process import exclusive_on_machine, ranks


def configure(runtime: RuntimeParams) -> torch.device:
    """Set up this process as `runtime` says; returns the device: the first available of PSPNET_DEVICE, GPU and CPU."""
    name = os.environ.get("PSPNET_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    if ranks() > 1 and name.startswith("cuda"):
        if name != "cuda":
            raise UserError(Problem("PSPNET_DEVICE", f"is '{name}', and there are {ranks()} processes", "cpu or cuda"))
        available, asked = torch.cuda.device_count(), os.environ["LOCAL_WORLD_SIZE"]
        if int(os.environ["LOCAL_RANK"]) >= available:
            raise UserError(Problem("PSPNET_DEVICES", f"is {asked}", f"at most {available}, the number of GPUs here"))
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # otherwise the loader's threads would open the first GPU too
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            Problem("PSPNET_DEVICE", f"'{name}' cannot be used ({reason})", "cpu, cuda or cuda:N")
        ) from None
    torch.set_num_threads(runtime.threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without this cuBLAS may sum in any order
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # sum in fp32
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return device


def autocast(device: torch.device, runtime: RuntimeParams) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=runtime.precision == "bf16")


def compiled(module: nn.Module, runtime: RuntimeParams) -> Callable[..., Any]:
    """Call the result instead of `module`; they share their weights."""
    return torch.compile(module) if runtime.compile else module


def seed_step(seed: int, step: int, rank: int, part: int) -> None:
    """Seed dropout from the step, the device and the part, so that a resumed run needs no generator state."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank, part]).generate_state(1, np.uint64)[0] >> 1))


def loader_workers() -> int:
    """The number of processes that decode and augment. It changes no result, so it is a setting of the machine."""
    setting = os.environ.get("PSPNET_LOADER_WORKERS")
    if setting is None:
        return min(8, (os.cpu_count() or 2) // 2 // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if not setting.isdigit():
        raise UserError(Problem("PSPNET_LOADER_WORKERS", f"is '{setting}'", "a whole number, 0 or more"))
    return int(setting)


def device_lock(device: torch.device) -> AbstractContextManager[None]:
    """A lock on the GPU: two runs on one would slow each other down or run out of memory. A CPU can be shared."""
    if device.type != "cuda":
        return nullcontext()
    return exclusive_on_machine(f"pspnet-gpu-{torch.cuda.get_device_properties(device).uuid}", "this GPU")
