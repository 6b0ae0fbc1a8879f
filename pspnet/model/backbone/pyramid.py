"""The pyramid pooling module: means over the whole image, its halves, thirds and sixths, joined to every feature."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pspnet.model.backbone.normalization import BatchNorm

PyramidWeights = Literal["none", "learned"]

BINS = (1, 2, 3, 6)


class AverageBins(nn.Module):
    """Adaptive average pooling as a product of matrices: torch's version has no deterministic backward pass on GPUs."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:  # (N, C, h, w) -> (N, C, bins, bins)
        rows, columns = (self._inside(length, x.device) for length in x.shape[-2:])
        inside = (rows[:, None, :, None] & columns[None, :, None, :]).flatten(2).flatten(0, 1)  # (bins * bins, h * w)
        # Half-precision features are summed in float32 and rounded once. The matrix is exact, because 0 and 1 are exact
        # in any precision.
        sums = inside.to(x.dtype) @ x.permute(0, 2, 3, 1).flatten(1, 2)
        means = sums / inside.sum(dim=1, dtype=torch.float32)[:, None]  # counts are exact in float32
        return means.reshape(len(x), self.bins, self.bins, -1).permute(0, 3, 1, 2)

    def _inside(self, length: int, device: torch.device) -> Tensor:
        """Return (bins, length): whether a feature is in a bin. Bins overlap unless the length is a multiple of the
        number of bins.
        """
        places, numbers = torch.arange(length, device=device), torch.arange(self.bins, device=device)[:, None]
        return (places >= numbers * length // self.bins) & (places < -(-(numbers + 1) * length // self.bins))


class PyramidPooling(nn.Module):
    def __init__(self, channels: int, weights: PyramidWeights = "none", align_corners: bool = False) -> None:
        super().__init__()
        reduced = channels // len(BINS)
        self.branches = nn.ModuleList(
            nn.Sequential(
                AverageBins(bins),
                nn.Conv2d(channels, reduced, 1, bias=False),
                BatchNorm(reduced),
                nn.ReLU(inplace=True),
            )
            for bins in BINS
        )
        self.channels = channels + reduced * len(BINS)
        self.align_corners = align_corners
        # A factor for each branch, initially 1, as in the published network.
        self.weights = nn.Parameter(torch.ones(len(BINS))) if weights == "learned" else None

    def forward(self, x: Tensor) -> Tensor:  # (N, C, h, w) -> (N, 2C, h, w)
        size = x.shape[-2:]
        pooled = [branch(x) for branch in self.branches]
        if self.weights is not None:
            pooled = [weight * own for weight, own in zip(self.weights, pooled, strict=True)]
        # Concatenate along the last dimension to keep channels_last; torch.cat along channels would lose it.
        parts = [own.permute(0, 2, 3, 1) for own in (x, *(self._enlarge(own, size) for own in pooled))]
        return torch.cat(parts, dim=-1).permute(0, 3, 1, 2)

    def _enlarge(self, pooled: Tensor, size: Sequence[int]) -> Tensor:
        if pooled.shape[-1] == 1:  # constant, so there is nothing to interpolate
            return pooled.expand(-1, -1, *size)
        return F.interpolate(pooled, size, mode="bilinear", align_corners=self.align_corners)
