"""The base class of self-supervised methods: views created in the loader, a head on the backbone, and a loss."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from pspnet.config.section import Section
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.backbone.resnet import ResNet

Params = TypeVar("Params", bound=Section)  # the settings of one method, as in pspnet/config/pretrain.py
Views = dict[str, NDArray[np.generic]]
Crop = Callable[[], NDArray[np.uint8]]  # each call crops a different (side, side, 3) view from the image


class Pretext(nn.Module, ABC, Generic[Params]):
    """A task that needs no masks. Only its `backbone` is kept."""

    def __init__(self, backbone: ResNet, preprocessing: Preprocessing, params: Params) -> None:
        super().__init__()
        self.backbone = backbone
        self.preprocessing = preprocessing

    @staticmethod
    @abstractmethod
    def views(crop: Crop, params: Params, rng: np.random.Generator) -> Views:
        """Return the task's input and answer for one image. Runs in the loader processes."""

    @abstractmethod
    def forward(self, views: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch of views, and figures for the history."""

    def after_step(self) -> None:
        """Run after each optimizer step. Methods with a second network update it here."""

    def trained_backbone(self) -> ResNet:
        """Return the backbone as fine-tuning expects it."""
        return self.backbone
