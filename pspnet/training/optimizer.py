"""Optimisers, the learning rate of every step, and the size of its gradient."""

import math
from collections.abc import Iterable
from typing import Literal

from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import SGD, AdamW, Optimizer, RMSprop


def build_optimizer(
    name: Literal["adamw", "sgd", "rmsprop"],
    groups: Iterable[tuple[Iterable[nn.Parameter], float]],
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    decay_norms_and_biases: bool,
) -> Optimizer:
    """`groups`: parameters with the factor on their learning rate."""
    settings = []
    for parameters, factor in groups:
        free = [parameter for parameter in parameters if parameter.requires_grad]
        vectors = [] if decay_norms_and_biases else [parameter for parameter in free if parameter.ndim <= 1]
        spared = {id(parameter) for parameter in vectors}
        kernels = [parameter for parameter in free if id(parameter) not in spared]
        for chosen, decay in ((kernels, weight_decay), (vectors, 0.0)):
            if chosen:
                settings.append({"params": chosen, "learning_rate_factor": factor, "weight_decay": decay})
    match name:
        case "sgd":
            return SGD(settings, lr=learning_rate, momentum=momentum)
        case "rmsprop":
            return RMSprop(settings, lr=learning_rate, momentum=momentum)
        case "adamw":
            return AdamW(settings, lr=learning_rate)


def learning_rate_at(
    step: int,
    steps: int,
    learning_rate: float,
    schedule: Literal["poly", "cosine"],
    warmup_steps: int,
    poly_power: float,
    floor: float,
) -> float:
    """Up in a straight line over the warm-up, down to `floor` times the rate by the schedule over the whole."""
    warmup = min(1.0, (step + 1) / (warmup_steps + 1))
    done = step / steps
    curve = (1 - done) ** poly_power if schedule == "poly" else (1 + math.cos(math.pi * done)) / 2
    return learning_rate * warmup * (floor + (1 - floor) * curve)


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["learning_rate_factor"]


def gradient_norm(module: nn.Module) -> Tensor:
    """Over all parameters together."""
    return get_total_norm([p.grad for p in module.parameters() if p.grad is not None])


def clip_gradient(module: nn.Module, norm: Tensor, longest: float) -> None:
    """Shorten a gradient of this norm to `longest`; 0 leaves every gradient as it is."""
    if longest:
        clip_grads_with_norm_(module.parameters(), longest, norm)
