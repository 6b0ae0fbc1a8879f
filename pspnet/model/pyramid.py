"""The pyramid pooling module: what the image holds as a whole, in halves, thirds and sixths, beside every feature."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pspnet.model.normalisation import BatchNorm

PyramidWeights = Literal["none", "learned"]

BINS = (1, 2, 3, 6)


class AverageBins(nn.Module):
    """Adaptive average pooling as a product of matrices: torch's own has no deterministic backward pass on GPUs."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:  # (N, C, h, w) -> (N, C, bins, bins)
        rows, columns = (self._inside(length, x.device) for length in x.shape[-2:])
        inside = (rows[:, None, :, None] & columns[None, :, None, :]).flatten(2).flatten(0, 1)  # (bins * bins, h * w)
        # Of features in half precision whole sums are taken in float32, and rounded once: 0 and 1 are exact in any.
        sums = inside.to(x.dtype) @ x.permute(0, 2, 3, 1).flatten(1, 2)
        means = sums / inside.sum(dim=1, dtype=torch.float32)[:, None]  # where numbers of features are exact
        return means.reshape(len(x), self.bins, self.bins, -1).permute(0, 3, 1, 2)

    def _inside(self, length: int, device: torch.device) -> Tensor:
        """(bins, length): which features each bin holds. Bins overlap where they do not divide the length."""
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
        # How much each branch counts. It begins as the published network, where all count the same.
        self.weights = nn.Parameter(torch.ones(len(BINS))) if weights == "learned" else None

    def forward(self, x: Tensor) -> Tensor:  # (N, C, h, w) -> (N, 2C, h, w)
        size = x.shape[-2:]
        pooled = [branch(x) for branch in self.branches]
        if self.weights is not None:
            pooled = [weight * own for weight, own in zip(self.weights, pooled, strict=True)]
        # Joined pixel by pixel, as convolutions read fastest; torch.cat alone would turn all to planes of channels.
        parts = [own.permute(0, 2, 3, 1) for own in (x, *(self._enlarge(own, size) for own in pooled))]
        return torch.cat(parts, dim=-1).permute(0, 3, 1, 2)

    def _enlarge(self, pooled: Tensor, size: Sequence[int]) -> Tensor:
        if pooled.shape[-1] == 1:  # the same everywhere: nothing to interpolate
            return pooled.expand(-1, -1, *size)
        return F.interpolate(pooled, size, mode="bilinear", align_corners=self.align_corners)
