"""Losses and small random batches for tests, and a straightforward implementation of each loss."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pspnet.losses.segmentation import SegmentationLoss, build_loss
from tests.parameters import demo_params

IGNORE = 255
CLASSES = ("sky", "road", "tree", "car")
KINDS = ("cross_entropy", "cross_entropy_dice", "dice", "focal", "ohem")
WEIGHTS = {"sky": 0.5, "road": 2.0, "tree": 1.0, "car": 3.0}
CPU = torch.device("cpu")


def build(kind: str, *, align_corners: bool = False, device: torch.device = CPU, **changes: Any) -> SegmentationLoss:
    """For example, `build("focal", focal_gamma=1.0)`."""
    finetune = demo_params(**{f"finetune__loss__{name}": value for name, value in {"kind": kind, **changes}.items()})
    return build_loss(finetune.finetune.loss, CLASSES, [400, 300, 200, 100], IGNORE, align_corners, device)


def weighted(kind: str, **changes: Any) -> SegmentationLoss:
    return build(kind, class_weights="given", given_weights=WEIGHTS, **changes)


def batch(
    coarse: tuple[int, int] = (5, 7),
    size: tuple[int, int] = (23, 31),
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Logits with gradients, and masks with about a fifth of the pixels ignored."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, len(CLASSES), *coarse, generator=generator, dtype=torch.float64)
    masks = torch.randint(0, len(CLASSES), (2, *size), generator=generator, dtype=torch.uint8)
    masks[torch.rand(masks.shape, generator=generator) < 0.2] = IGNORE
    return logits.to(dtype).requires_grad_(), masks


def straightforward(
    kind: str, logits: Tensor, masks: Tensor, align_corners: bool, weights: dict[str, float] | None = None
) -> Tensor:
    """Compute the loss with the values from params.yaml: gamma 2, threshold 0.7, minimum share 0.1, half cross-entropy
    and half Dice.
    """
    full = F.interpolate(logits, masks.shape[-2:], mode="bilinear", align_corners=align_corners)
    of_class = torch.tensor(list((weights or dict.fromkeys(CLASSES, 1.0)).values()), dtype=full.dtype)
    valid = masks != IGNORE
    right = masks[valid].long()
    p = full.softmax(1).movedim(1, -1)[valid]  # shape (pixels, K)
    of_right = p.gather(1, right[:, None])[:, 0]
    w = of_class[right]
    present = [k for k in range(len(CLASSES)) if (right == k).any()]
    if kind == "cross_entropy_dice":
        return (
            straightforward("cross_entropy", logits, masks, align_corners, weights)
            + straightforward("dice", logits, masks, align_corners, weights)
        ) / 2
    if kind == "dice":
        losses = [1 - 2 * p[right == k, k].sum() / (p[:, k].sum() + (right == k).sum()) for k in present]
        return torch.stack(losses) @ of_class[present] / of_class[present].sum()
    if kind == "focal":
        w_focal = w * (1 - of_right) ** 2
        return (w_focal * -of_right.log()).sum() / w.sum()
    if kind == "ohem":
        hard = of_right <= 0.7
        assert hard.sum() > 0.1 * len(right), "the threshold decides for such a batch"
        w, of_right = w[hard], of_right[hard]
    return (w * -of_right.log()).sum() / w.sum()
