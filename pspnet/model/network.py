"""PSPNet: images to logits, never a loss."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from pspnet.model.backbone import Depth, OutputStride, ResNet
from pspnet.model.pyramid import PyramidPooling


@dataclass(frozen=True)
class Architecture:
    """Everything that decides the shapes of the weights and what is computed with them."""

    depth: Depth
    width: float
    output_stride: OutputStride
    classes: int
    dropout: float


class Head(nn.Sequential):
    def __init__(self, inputs: int, channels: int, classes: int, dropout: float) -> None:
        super().__init__(
            nn.Conv2d(inputs, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Dropout2d(dropout),
            nn.Conv2d(channels, classes, 1),
        )


class PSPNet(nn.Module):
    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.backbone = ResNet(architecture.depth, architecture.width, architecture.output_stride)
        deepest = self.backbone.channels[-1]
        self.pyramid = PyramidPooling(deepest)
        self.head = Head(self.pyramid.channels, deepest // 4, architecture.classes, architecture.dropout)

    def forward(self, images: Tensor) -> Tensor:  # (N, 3, H, W) -> (N, K, H, W)
        *_, c5 = self.backbone(images)
        return _enlarge(self.head(self.pyramid(c5)), images)


class SupervisedPSPNet(nn.Module):
    """PSPNet with the auxiliary head on layer3 that helps its training and is dropped afterwards."""

    def __init__(self, network: PSPNet) -> None:
        super().__init__()
        self.network = network
        middle = network.backbone.channels[-2]
        self.auxiliary_head = Head(middle, middle // 4, network.architecture.classes, network.architecture.dropout)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # (N, 3, H, W) -> 2 x (N, K, H, W)
        *_, c4, c5 = self.network.backbone(images)
        main = self.network.head(self.network.pyramid(c5))
        return _enlarge(main, images), _enlarge(self.auxiliary_head(c4), images)


def _enlarge(logits: Tensor, images: Tensor) -> Tensor:
    return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)
