"""The loss of a batch, as selected by `finetune.loss`."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from pspnet.config.finetune import LossParams
from pspnet.losses.class_weights import class_weights
from pspnet.losses.likelihood import class_sums, negative_log_likelihood
from pspnet.losses.terms import cross_entropy, dice, focal, hardest

VALUES = 256  # number of possible values of a mask pixel

Loss = TypeVar("Loss", Tensor, float)


class SegmentationLoss:
    """The loss of a batch. If nothing is annotated, the loss and its gradient are 0.

    If a step has several batches (one per device, for example), its loss is their mean, weighted by `weight`. For
    cross-entropy and focal loss, that equals the loss over all pixels at once. Dice and OHEM work on each batch
    separately: Dice measures overlap, and OHEM finds the hardest pixels.
    """

    def __init__(
        self,
        params: LossParams,
        class_weights: Mapping[str, float],
        ignore: int,
        align_corners: bool,
        device: torch.device,
    ) -> None:
        self.class_weights = class_weights
        self._params, self._align_corners = params, align_corners
        self._class_weights = torch.tensor(list(class_weights.values()), device=device)
        self._weights = _by_value(self._class_weights, ignore)
        self._annotated = _by_value(torch.ones_like(self._class_weights), ignore)

    def __call__(self, logits: Tensor, masks: Tensor) -> Tensor:
        """(N, K, h, w), (N, H, W) uint8 -> the loss. Logits are enlarged to the size of the masks as in the network."""
        with torch.autocast(logits.device.type, enabled=False):  # autocast would round the enlarged logits
            return self._mean(logits, masks)

    def total(self, logits: Tensor, masks: Tensor) -> Tensor:
        """The sum of the cross-entropy of all pixels, each times its weight, whatever the kind of the loss."""
        with torch.autocast(logits.device.type, enabled=False):
            return (self._pixel_weights(masks) * self._nll(logits, masks)).sum()

    def weight(self, masks: Tensor) -> Tensor:
        """Return the weight of these masks' loss relative to others: the sum of their pixel weights."""
        return self._pixel_weights(masks).sum()

    def _mean(self, logits: Tensor, masks: Tensor) -> Tensor:
        params = self._params
        match params.kind:
            case "cross_entropy":
                return self._cross_entropy(logits, masks)
            case "focal":
                return focal(self._nll(logits, masks), self._pixel_weights(masks), params.focal_gamma)
            case "ohem":
                return hardest(
                    self._nll(logits, masks), self._pixel_weights(masks), params.ohem_threshold, params.ohem_least_share
                )
            case "dice":
                return self._dice(logits, masks)
            case "cross_entropy_dice":
                share = params.cross_entropy_share
                return share * self._cross_entropy(logits, masks) + (1 - share) * self._dice(logits, masks)

    def _pixel_weights(self, masks: Tensor) -> Tensor:
        return self._weights[masks.int()]

    def _nll(self, logits: Tensor, masks: Tensor) -> Tensor:
        return negative_log_likelihood(logits, masks, self._align_corners)

    def _cross_entropy(self, logits: Tensor, masks: Tensor) -> Tensor:
        return cross_entropy(self._nll(logits, masks), self._pixel_weights(masks))

    def _dice(self, logits: Tensor, masks: Tensor) -> Tensor:
        sums = class_sums(logits, masks, self._annotated[masks.int()], self._align_corners)
        return dice(*sums, self._class_weights)


def build_loss(
    params: LossParams,
    classes: tuple[str, ...],
    class_pixels: Sequence[int],
    ignore: int,
    align_corners: bool,
    device: torch.device,
) -> SegmentationLoss:
    """`class_pixels` is the number of pixels of each class in the training masks."""
    return SegmentationLoss(params, class_weights(params, classes, class_pixels), ignore, align_corners, device)


def _by_value(of_classes: Tensor, ignore: int) -> Tensor:
    """Return a table indexed by mask values. A value that is not a class makes the loss NaN, which stops training
    without waiting for the GPU.
    """
    table = of_classes.new_full((VALUES,), torch.nan)
    table[: len(of_classes)] = of_classes
    table[ignore] = 0
    return table


def supervised_loss(main: Loss, auxiliary: Loss, auxiliary_weight: float) -> Loss:
    """Return the sum of the main loss and the weighted auxiliary loss, as published."""
    return main + auxiliary_weight * auxiliary
