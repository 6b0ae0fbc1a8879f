"""The pyramid pooling module: what the image holds as a whole, in halves, thirds and sixths, beside every feature."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BINS = (1, 2, 3, 6)


class PyramidPooling(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = channels // len(BINS)
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(bins),
                nn.Conv2d(channels, reduced, 1, bias=False),
                nn.BatchNorm2d(reduced),
                nn.ReLU(inplace=True),
            )
            for bins in BINS
        )
        self.channels = channels + reduced * len(BINS)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, h, w) -> (N, 2C, h, w)
        size = x.shape[-2:]
        pooled = [F.interpolate(branch(x), size, mode="bilinear", align_corners=False) for branch in self.branches]
        return torch.cat([x, *pooled], dim=1)
