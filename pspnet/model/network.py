"""PSPNet: images -> logits, never a loss."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pspnet.model.backbone.normalization import BatchNorm
from pspnet.model.backbone.pyramid import PyramidPooling, PyramidWeights
from pspnet.model.backbone.resnet import Depth, Dilation, Features, OutputStride, ResNet, Stem

Decoder = Literal["plain", "low_level"]


@dataclass(frozen=True)
class Architecture:
    """Everything that determines the shapes of the weights and what they compute.

    Fields with a default select a variant. docs/network.md lists which project uses which variant.
    """

    depth: Depth
    width: float
    output_stride: OutputStride
    classes: int
    dropout: float
    stem: Stem = "seven"
    dilation: Dilation = "full"
    align_corners: bool = False
    decoder: Decoder = "plain"
    pyramid_weights: PyramidWeights = "none"
    image_channels: int = 3


class Head(nn.Sequential):
    def __init__(self, inputs: int, channels: int, classes: int, dropout: float) -> None:
        super().__init__(
            nn.Conv2d(inputs, channels, 3, padding=1, bias=False),
            BatchNorm(channels),
            nn.ReLU(inplace=True),
            nn.Dropout2d(dropout),
            nn.Conv2d(channels, classes, 1),
        )


class Fusion(nn.Module):
    """Join the pyramid's output with shallow features at their resolution, which preserves thin objects better."""

    def __init__(self, deep: int, shallow: int, width: float, align_corners: bool) -> None:
        super().__init__()
        kept, added = deep // 16, round(48 * width)
        self.deep = _project(deep, kept)
        self.shallow = _project(shallow, added)  # few channels, so that they do not dominate the deep features
        self.channels = kept + added
        self.align_corners = align_corners

    def forward(self, deep: Tensor, shallow: Tensor) -> Tensor:  # (N, D, h, w), (N, S, H, W) -> (N, channels, H, W)
        return torch.cat([_enlarge(self.deep(deep), shallow, self.align_corners), self.shallow(shallow)], dim=1)


def _project(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), BatchNorm(outputs), nn.ReLU(inplace=True))


class PSPNet(nn.Module):
    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.backbone = ResNet(
            architecture.depth,
            architecture.width,
            architecture.output_stride,
            architecture.stem,
            architecture.dilation,
            architecture.image_channels,
        )
        shallow, *_, deepest = self.backbone.channels
        self.pyramid = PyramidPooling(deepest, architecture.pyramid_weights, architecture.align_corners)
        inputs = self.pyramid.channels
        self.fusion: Fusion | None = None
        if architecture.decoder == "low_level":
            self.fusion = Fusion(inputs, shallow, architecture.width, architecture.align_corners)
            inputs = self.fusion.channels
        self.head = Head(inputs, deepest // 4, architecture.classes, architecture.dropout)

    def forward(self, images: Tensor) -> Tensor:  # (N, image_channels, H, W) -> (N, K, H, W)
        return _enlarge(self.coarse_logits(self.backbone(images)), images, self.architecture.align_corners)

    def coarse_logits(self, features: Features) -> Tensor:
        """Return logits at the resolution of C5, or of C2 if the decoder is low_level."""
        c2, *_, c5 = features
        pooled = self.pyramid(c5)
        return self.head(pooled if self.fusion is None else self.fusion(pooled, c2))  # type: ignore[no-any-return]


class SupervisedPSPNet(nn.Module):
    """PSPNet with an auxiliary head on layer3 that helps training and is dropped afterwards."""

    def __init__(self, network: PSPNet) -> None:
        super().__init__()
        self.network = network
        middle = network.backbone.channels[-2]
        self.auxiliary_head = Head(middle, middle // 4, network.architecture.classes, network.architecture.dropout)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # (N, image_channels, H, W) -> 2 x (N, K, h, w)
        """Return the main and auxiliary coarse logits. The loss enlarges them without ever storing them at full
        size.
        """
        features = self.network.backbone(images)
        return self.network.coarse_logits(features), self.auxiliary_head(features[-2])


def _enlarge(x: Tensor, like: Tensor, align_corners: bool) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=align_corners)
