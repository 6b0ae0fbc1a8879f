"""How far logits are from masks: one number with a gradient, the mean over the annotated pixels of a batch."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from pspnet.config.finetune import LossParams
from pspnet.losses.class_weights import class_weights
from pspnet.losses.likelihood import class_sums, negative_log_likelihood
from pspnet.losses.terms import cross_entropy, dice, focal, hardest

VALUES = 256  # that a pixel of a mask can have

Loss = TypeVar("Loss", Tensor, float)


class SegmentationLoss:
    """The loss of one batch. Where nothing is annotated it is 0, and so is its gradient.

    The loss of a step in several batches (one for each device, say) is the mean of theirs, each counted by its
    `weight`. Of cross-entropy and focal loss that is the loss of all pixels at once. Dice measures overlap, and OHEM
    looks for the hardest pixels, in each batch by itself.
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
        """(N, K, h, w), (N, H, W) uint8. Logits are enlarged to the size of the masks, as the network does it."""
        with torch.autocast(logits.device.type, enabled=False):  # it would round what is enlarged
            return self._mean(logits, masks)

    def weight(self, masks: Tensor) -> Tensor:
        """How much the loss of these masks counts beside those of others: the sum of their pixels' weights."""
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
    """`class_pixels`: of each class in the masks of train."""
    return SegmentationLoss(params, class_weights(params, classes, class_pixels), ignore, align_corners, device)


def _by_value(of_classes: Tensor, ignore: int) -> Tensor:
    """By the value of a mask's pixel. One that is no class makes the loss NaN: that stops a training, and waits for no
    GPU.
    """
    table = of_classes.new_full((VALUES,), torch.nan)
    table[: len(of_classes)] = of_classes
    table[ignore] = 0
    return table


def supervised_loss(main: Loss, auxiliary: Loss, auxiliary_weight: float) -> Loss:
    """The published sum: the main loss and a share of the auxiliary head's."""
    return main + auxiliary_weight * auxiliary
