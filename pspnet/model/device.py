"""The device to compute on, set up to reproduce the same bits."""

import os

import torch

from pspnet.config.runtime import RuntimeParams
from pspnet.errors import Problem, UserError
from pspnet.machine.process import ranks


def configure(runtime: RuntimeParams) -> torch.device:
    """Set up this process as `runtime` says, and return the device: PSPNET_DEVICE if set, otherwise a GPU, otherwise
    the CPU.
    """
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
            torch.cuda.set_device(device)  # otherwise the loader threads would also open the first GPU
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            Problem("PSPNET_DEVICE", f"'{name}' cannot be used ({reason})", "cpu, cuda or cuda:N")
        ) from None
    torch.set_num_threads(runtime.threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without this, cuBLAS can sum in any order
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # sum in fp32
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return device
