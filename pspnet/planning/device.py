"""The device that trains: what it is, and how long a training step of a network takes on it."""

import math
import os
import statistics
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol

import torch

from pspnet.config.finetune import LossParams
from pspnet.config.optimizer import OptimizerParams
from pspnet.config.runtime import RuntimeParams
from pspnet.losses.segmentation import build_loss, supervised_loss
from pspnet.model.device import configure
from pspnet.model.network import Architecture, PSPNet, SupervisedPSPNet
from pspnet.training.shared.optimizer import build_optimizer

Precision = Literal["fp32", "bf16"]

STEPS = 3  # timed steps, after one untimed step
BF16_GAIN = 1.15  # how much faster bf16 must be: a smaller gain is not worth its coarse rounding
OPTIMIZER = OptimizerParams(
    kind="adamw", learning_rate=1e-3, momentum=0.9, weight_decay=0.0, decay_norms_and_biases=False, schedule="poly",
    warmup_steps=0, poly_power=0.9, learning_rate_floor=0.0, gradient_clip_norm=0.0, accumulation_steps=1,
)  # fmt: skip
LOSS = LossParams(
    kind="cross_entropy", cross_entropy_share=0.5, focal_gamma=2.0, ohem_threshold=0.7, ohem_least_share=0.1,
    class_weights="none", class_weight_max=5.0, given_weights={},
)  # fmt: skip


@dataclass(frozen=True)
class Device:
    kind: Literal["cpu", "cuda"]
    cores: int
    precision: Precision


@dataclass(frozen=True)
class Step:
    """A training step to time on a device."""

    architecture: Architecture
    height_px: int
    width_px: int
    batch_size: int


PROBE = Step(Architecture(18, 0.5, 16, 4, 0.0, decoder="low_level"), 192, 192, 8)


class Timing(Protocol):
    def __call__(self, step: Step, precision: Precision) -> float:
        """Return the seconds per step, or infinity if the step does not fit into memory."""


def this_device(runtime: RuntimeParams) -> tuple[Device, Timing]:
    """Return the device that `pspnet finetune` would use, the faster precision for `PROBE`, and a stopwatch for the
    device.
    """
    cores = len(os.sched_getaffinity(0))
    device = configure(runtime.model_copy(update={"threads": cores}))
    timing = partial(timed, device)
    gain = timing(PROBE, "fp32") / timing(PROBE, "bf16")
    kind: Literal["cpu", "cuda"] = "cuda" if device.type == "cuda" else "cpu"
    return Device(kind, cores, "bf16" if gain >= BF16_GAIN else "fp32"), timing


def timed(device: torch.device, step: Step, precision: Precision) -> float:
    """Return the seconds that a training step takes on random images: forward, loss, backward and update, without
    loading.
    """
    try:
        return _timed(device, step, precision)
    except torch.OutOfMemoryError:
        return math.inf


def _timed(device: torch.device, step: Step, precision: Precision) -> float:
    module = SupervisedPSPNet(PSPNet(replace(step.architecture, dropout=0.0)))
    module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(OPTIMIZER, [(module.parameters(), 1.0)])
    classes = tuple(map(str, range(step.architecture.classes)))
    loss_of = build_loss(LOSS, classes, [1] * len(classes), len(classes), step.architecture.align_corners, device)
    shape = step.batch_size, step.height_px, step.width_px
    images = torch.rand(shape[0], 3, *shape[1:], device=device).contiguous(memory_format=torch.channels_last)
    masks = torch.randint(len(classes), shape, dtype=torch.uint8, device=device)
    seconds = []
    for _ in range(1 + STEPS):
        started = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            main, auxiliary = module(images)
        optimizer.zero_grad()
        torch.autograd.backward(supervised_loss(loss_of(main, masks), loss_of(auxiliary, masks), 0.4))
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])
