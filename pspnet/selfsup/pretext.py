"""The base class of self-supervised methods: views made in the loader, a head on the backbone, a loss."""

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
Crop = Callable[[], NDArray[np.uint8]]  # each call cuts a different (side, side, 3) view out of the image


class Pretext(nn.Module, ABC, Generic[Params]):
    """A task that needs no masks. Only its `backbone` is kept."""

    def __init__(self, backbone: ResNet, preprocessing: Preprocessing, params: Params) -> None:
        super().__init__()
        self.backbone = backbone
        self.preprocessing = preprocessing

    @staticmethod
    @abstractmethod
    def views(crop: Crop, params: Params, rng: np.random.Generator) -> Views:
        """The task's input and answer for one image. Runs in the loader's processes."""

    @abstractmethod
    def forward(self, views: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch of views, and figures for the history."""

    def after_step(self) -> None:
        """Called after each optimizer step; methods with a second network update it here."""
