"""Optimisers and the learning rate of every step."""

from collections.abc import Iterable
from typing import Literal

from torch import nn
from torch.optim import SGD, AdamW, Optimizer


def build_optimizer(
    name: Literal["adamw", "sgd"],
    groups: Iterable[tuple[Iterable[nn.Parameter], float]],
    learning_rate: float,
    momentum: float,
    weight_decay: float,
) -> Optimizer:
    """`groups`: parameters with the factor on their learning rate."""
    settings = [
        {"params": [p for p in parameters if p.requires_grad], "learning_rate_factor": factor}
        for parameters, factor in groups
    ]
    settings = [group for group in settings if group["params"]]
    if name == "sgd":
        return SGD(settings, lr=learning_rate, momentum=momentum, weight_decay=weight_decay)
    return AdamW(settings, lr=learning_rate, weight_decay=weight_decay)


def learning_rate_at(step: int, steps: int, learning_rate: float, warmup_steps: int, poly_power: float) -> float:
    """Up in a straight line over the warm-up, down to 0 by the poly rule over the whole."""
    warmup = min(1.0, (step + 1) / (warmup_steps + 1))
    return learning_rate * warmup * float((1 - step / steps) ** poly_power)


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["learning_rate_factor"]
