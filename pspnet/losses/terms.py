"""The kinds of losses. Pixels count by their `weights` (N, H, W), ignored ones by 0; if all do, the loss is 0."""

import math

import torch
from torch import Tensor


def cross_entropy(nll: Tensor, weights: Tensor) -> Tensor:
    """sum(w * nll) / sum(w), as torch weights classes: a pixel that counts twice is as good as two pixels."""
    return (weights * nll).sum() / _positive(weights.sum())


def focal(nll: Tensor, weights: Tensor, gamma: float) -> Tensor:
    """Cross-entropy times (1 - p) ** gamma, where p is the share given to the mask's class."""
    missed = -torch.expm1(-nll)
    # Its slope at 0 is infinite for gamma below 1: a pixel without any doubt would make the gradient NaN.
    return cross_entropy(missed.clamp(min=torch.finfo(nll.dtype).tiny) ** gamma * nll, weights)


def hardest(nll: Tensor, weights: Tensor, threshold: float, least_share: float) -> Tensor:
    """Online hard example mining: cross-entropy over the pixels whose class is given at most `threshold`, and if these
    are fewer than `least_share` of the annotated ones, over that many hardest ones.
    """
    with torch.no_grad():
        counted = weights != 0
        least = (least_share * counted.sum()).ceil().long()
        ranked = nll.masked_fill(~counted, -math.inf).flatten().sort(descending=True).values
        bound = ranked[(least - 1).clamp(min=0)].clamp(max=-math.log(threshold))
        hard = weights * (nll >= bound)
    return cross_entropy(nll, hard)


def dice(given: Tensor, own: Tensor, pixels: Tensor, class_weights: Tensor) -> Tensor:
    """1 - 2 * overlap / (share given + pixels), the mean over the classes that the masks show.

    A class that is absent has no overlap to gain: with it the mean would depend on how many classes there are.
    """
    present = class_weights * (pixels > 0)
    losses = 1 - 2 * own / _positive(given + pixels)
    return (present * losses).sum() / _positive(present.sum())


def _positive(total: Tensor) -> Tensor:
    """What is 0 is a sum over nothing; divided by this it stays 0."""
    return total.clamp(min=torch.finfo(total.dtype).tiny)
