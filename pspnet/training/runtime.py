"""The device a training runs on, and how it is made to give the same bits again."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from pspnet.config.runtime import RuntimeParams
from pspnet.errors import Problem, UserError
from pspnet.process import exclusive_on_machine, ranks


def configure(runtime: RuntimeParams) -> torch.device:
    """Make this process compute as `runtime` says, on the device that PSPNET_DEVICE names or the best there is."""
    name = os.environ.get("PSPNET_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    if ranks() > 1 and name.startswith("cuda"):
        if name != "cuda":
            raise UserError(Problem("PSPNET_DEVICE", f"is '{name}', and there are {ranks()} processes", "cpu or cuda"))
        there, asked = torch.cuda.device_count(), os.environ["LOCAL_WORLD_SIZE"]
        if int(os.environ["LOCAL_RANK"]) >= there:
            raise UserError(Problem("PSPNET_DEVICES", f"is {asked}", f"at most {there}, the GPUs that are here"))
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # the loader's threads would open the first one too
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            Problem("PSPNET_DEVICE", f"'{name}' cannot be used ({reason})", "cpu, cuda or cuda:N")
        ) from None
    torch.set_num_threads(runtime.threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may sum in any order
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # sums stay in fp32 to their end
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return device


def autocast(device: torch.device, runtime: RuntimeParams) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=runtime.precision == "bf16")


def compiled(module: nn.Module, runtime: RuntimeParams) -> Callable[..., Any]:
    """To be called instead of `module`, whose weights it shares."""
    return torch.compile(module) if runtime.compile else module


def seed_step(seed: int, step: int, rank: int, part: int) -> None:
    """Dropout and the like depend on the step, the device and the part alone: a resumed run needs no memory of them."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank, part]).generate_state(1, np.uint64)[0] >> 1))


def loader_workers() -> int:
    """Processes that decode and augment. Their number changes no result, so it is a setting of the machine."""
    setting = os.environ.get("PSPNET_LOADER_WORKERS")
    if setting is None:
        return min(8, (os.cpu_count() or 2) // 2 // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if not setting.isdigit():
        raise UserError(Problem("PSPNET_LOADER_WORKERS", f"is '{setting}'", "a whole number, 0 or more"))
    return int(setting)


def device_lock(device: torch.device) -> AbstractContextManager[None]:
    """Two trainings on one GPU would only get in each other's way, or out of memory. A CPU can be shared."""
    if device.type != "cuda":
        return nullcontext()
    return exclusive_on_machine(f"pspnet-gpu-{torch.cuda.get_device_properties(device).uuid}", "this GPU")
