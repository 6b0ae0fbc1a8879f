"""From an image's bytes to what a network sees. Training, evaluation and serving have only this one."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Preprocessing:
    mean: tuple[float, float, float]  # of red, green, blue; 0 is black and 1 is white
    std: tuple[float, float, float]

    @property
    def mean_color(self) -> tuple[int, int, int]:
        """What padding looks like: neither dark nor bright to the network."""
        red, green, blue = (round(255 * channel) for channel in self.mean)
        return red, green, blue

    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> float32 of about zero mean and unit variance, in the layout that convolves fastest."""
        mean = torch.tensor(self.mean, device=images.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, 3, 1, 1)
        normal = (images.float() / 255 - mean) / std
        return normal.contiguous(memory_format=torch.channels_last)
