"""The pyramid pooling module: what the image holds as a whole, in halves, thirds and sixths, beside every feature."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BINS = (1, 2, 3, 6)


class AverageBins(nn.Module):
    """Adaptive average pooling as two products of matrices: torch's own has no deterministic backward pass on GPUs."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:  # (N, C, h, w) -> (N, C, bins, bins)
        rows, columns = (self._shares(length, x.device) for length in x.shape[-2:])
        with torch.autocast(x.device.type, enabled=False):  # a mean of many numbers needs all its digits
            return rows @ x.float() @ columns.T

    def _shares(self, length: int, device: torch.device) -> Tensor:
        """(bins, length): what each feature counts in each bin. Bins overlap where they do not divide the length."""
        places, numbers = torch.arange(length, device=device), torch.arange(self.bins, device=device)[:, None]
        inside = (places >= numbers * length // self.bins) & (places < -(-(numbers + 1) * length // self.bins))
        shares = inside.float()
        return shares / shares.sum(dim=1, keepdim=True)


class PyramidPooling(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = channels // len(BINS)
        self.branches = nn.ModuleList(
            nn.Sequential(
                AverageBins(bins),
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
