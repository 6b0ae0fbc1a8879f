"""What every self-supervised method is: views made in the loader, a head on the backbone, a loss."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from pspnet.config.pretrain import PretrainParams
from pspnet.model.backbone import ResNet
from pspnet.model.preprocessing import Preprocessing

Views = dict[str, NDArray[np.generic]]
Crop = Callable[[], NDArray[np.uint8]]  # each call cuts another (side, side, 3) view out of the image


class Pretext(nn.Module, ABC):
    """A task that needs no masks. Its `backbone` is what remains of it."""

    def __init__(self, backbone: ResNet, preprocessing: Preprocessing, params: PretrainParams) -> None:
        super().__init__()
        self.backbone = backbone
        self.preprocessing = preprocessing

    @staticmethod
    @abstractmethod
    def views(crop: Crop, params: PretrainParams, rng: np.random.Generator) -> Views:
        """What the task shows of one image, and what it asks. Runs in the loader's processes."""

    @abstractmethod
    def forward(self, views: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch of views, and figures to follow."""

    def after_step(self) -> None:
        """Called after each step of the optimiser; methods with a second network move it here."""
