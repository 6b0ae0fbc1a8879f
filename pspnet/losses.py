"""Losses on logits of the images' full size."""

from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, masks: Tensor, ignore: int) -> Tensor:  # (N, K, H, W), (N, H, W)
    """Mean over the annotated pixels only. A batch without any gives 0, and a gradient of 0."""
    # Pixels in one line: the loss over a plane has no deterministic backward pass on GPUs.
    flat = logits.permute(0, 2, 3, 1).reshape(-1, logits.shape[1]).float()
    total = F.cross_entropy(flat, masks.reshape(-1).long(), ignore_index=ignore, reduction="sum")
    return total / (masks != ignore).sum().clamp(min=1)


def supervised_loss(main: Tensor, auxiliary: Tensor, auxiliary_weight: float) -> Tensor:
    """The published sum: the main loss and a share of the auxiliary head's."""
    return main + auxiliary_weight * auxiliary
