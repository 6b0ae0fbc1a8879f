"""A moving average of the weights during training, which often predicts better than the weights from any single
step.
"""

import copy
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def start_average(module: Module) -> Module:
    average = copy.deepcopy(module)
    average.requires_grad_(False)
    return average


@torch.no_grad()
def move_average(average: nn.Module, module: nn.Module, decay: float, step: int) -> None:
    """Update the average after `step` steps. Early on, the average keeps less of the past, so that the initial weights
    do not linger.
    """
    kept = min(decay, (1 + step) / (10 + step))
    pairs = list(zip(average.state_dict().values(), module.state_dict().values(), strict=True))
    # BatchNorm's statistics are also averaged: they must match the averaged weights.
    moved = [(held, now) for held, now in pairs if held.is_floating_point()]
    torch._foreach_lerp_([held for held, _ in moved], [now for _, now in moved], 1 - kept)
    for held, now in pairs:
        if not held.is_floating_point():
            held.copy_(now)
