"""Optimizers, the learning rate for each step, and limits on the size of gradients."""

import math
from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import SGD, AdamW, Optimizer, RMSprop

from pspnet.config.optimizer import OptimizerParams

Groups = Iterable[tuple[Iterable[nn.Parameter], float]]  # parameters and their learning rate factor


def build_optimizer(params: OptimizerParams, groups: Groups) -> Optimizer:
    settings = []
    for parameters, factor in groups:
        free = [parameter for parameter in parameters if parameter.requires_grad]
        vectors = [] if params.decay_norms_and_biases else [parameter for parameter in free if parameter.ndim <= 1]
        spared = {id(parameter) for parameter in vectors}
        kernels = [parameter for parameter in free if id(parameter) not in spared]
        for chosen, decay in ((kernels, params.weight_decay), (vectors, 0.0)):
            if chosen:
                settings.append({"params": chosen, "learning_rate_factor": factor, "weight_decay": decay})
    match params.kind:  # fused: one pass over the weights, which matters for small networks and batches
        case "sgd":
            return SGD(settings, lr=params.learning_rate, momentum=params.momentum, fused=True)
        case "rmsprop":
            return RMSprop(settings, lr=params.learning_rate, momentum=params.momentum)
        case "adamw":
            return AdamW(settings, lr=params.learning_rate, fused=True)


def learning_rate_at(step: int, steps: int, params: OptimizerParams) -> float:
    """Return the learning rate. It rises linearly during warm-up, and the schedule lowers it to the floor over all
    steps.
    """
    warmup = min(1.0, (step + 1) / (params.warmup_steps + 1))
    done = step / steps
    curve = (1 - done) ** params.poly_power if params.schedule == "poly" else (1 + math.cos(math.pi * done)) / 2
    return params.learning_rate * warmup * (params.learning_rate_floor + (1 - params.learning_rate_floor) * curve)


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["learning_rate_factor"]


def gradient_norm(module: nn.Module) -> Tensor:
    """Return the norm of the gradient over all parameters together."""
    return get_total_norm([p.grad for p in module.parameters() if p.grad is not None])


def clip_gradient(module: nn.Module, norm: Tensor, longest: float) -> None:
    """Shorten a gradient with this norm to `longest`. 0 leaves it unchanged."""
    if longest:
        clip_grads_with_norm_(module.parameters(), longest, norm)
