"""The kinds of loss. `weights` (N, H, W) has a weight for each pixel, 0 for ignored pixels. If all are 0, so is the
loss.
"""

import math

import torch
from torch import Tensor


def cross_entropy(nll: Tensor, weights: Tensor) -> Tensor:
    """sum(w * nll) / sum(w), as torch weights classes: a pixel of weight 2 counts like two pixels."""
    return (weights * nll).sum() / _positive(weights.sum())


def focal(nll: Tensor, weights: Tensor, gamma: float) -> Tensor:
    """Cross-entropy times (1 - p) ** gamma, where p is the probability of the mask's class."""
    missed = -torch.expm1(-nll)
    # For gamma below 1, the slope at 0 is infinite, so a pixel with p = 1 would make the gradient NaN.
    return cross_entropy(missed.clamp(min=torch.finfo(nll.dtype).tiny) ** gamma * nll, weights)


def hardest(nll: Tensor, weights: Tensor, threshold: float, least_share: float) -> Tensor:
    """Online hard example mining: cross-entropy over the pixels for which the right class is at most `threshold`
    likely, or over the hardest `least_share` of the annotated pixels, whichever is more.
    """
    with torch.no_grad():
        counted = weights != 0
        least = (least_share * counted.sum()).ceil().long()
        ranked = nll.masked_fill(~counted, -math.inf).flatten().sort(descending=True).values
        bound = ranked[(least - 1).clamp(min=0)].clamp(max=-math.log(threshold))
        hard = weights * (nll >= bound)
    return cross_entropy(nll, hard)


def dice(given: Tensor, own: Tensor, pixels: Tensor, class_weights: Tensor) -> Tensor:
    """1 - 2 * overlap / (probability + pixels), as the weighted mean over the classes in the masks.

    An absent class has no overlap to gain, so counting it would make the mean depend on the number of classes.
    """
    present = class_weights * (pixels > 0)
    losses = 1 - 2 * own / _positive(given + pixels)
    return (present * losses).sum() / _positive(present.sum())


def _positive(total: Tensor) -> Tensor:
    """Return `total`, or a tiny number if it is 0, so that an empty sum divided by it is 0."""
    return total.clamp(min=torch.finfo(total.dtype).tiny)
