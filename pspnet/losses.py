"""Losses on logits of the images' full size."""

from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, masks: Tensor, ignore: int) -> Tensor:  # (N, K, H, W), (N, H, W)
    """Mean over the annotated pixels only. A batch without any gives 0, and a gradient of 0."""
    # Class by class in memory, the softmax takes a third of the time; pixels in one line, because the loss over a plane
    # has no deterministic backward pass on GPUs.
    likelihoods = F.log_softmax(logits.float().contiguous(), dim=1).permute(0, 2, 3, 1).flatten(0, 2)
    total = F.nll_loss(likelihoods, masks.flatten().long(), ignore_index=ignore, reduction="sum")
    return total / (masks != ignore).sum().clamp(min=1)


def supervised_loss(main: Tensor, auxiliary: Tensor, auxiliary_weight: float) -> Tensor:
    """The published sum: the main loss and a share of the auxiliary head's."""
    return main + auxiliary_weight * auxiliary
