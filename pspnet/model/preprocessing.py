"""From an image's bytes to what a network sees. Training, evaluation and serving have only this one."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Preprocessing:
    mean: tuple[float, ...]  # of each channel, of which red, green and blue are the usual ones; 0 is black and 1 white
    std: tuple[float, ...]

    @property
    def mean_color(self) -> tuple[int, int, int]:
        """What the padding of an RGB image looks like: neither dark nor bright to the network."""
        red, green, blue = (round(255 * channel) for channel in self.mean)
        return red, green, blue

    def __call__(self, images: Tensor) -> Tensor:
        """(N, C, H, W) uint8 -> float32 of about zero mean and unit variance, in the layout that convolves fastest."""
        mean = torch.tensor(self.mean, device=images.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, -1, 1, 1)
        normal = torch.addcmul(-mean / std, images.float(), 1 / (255 * std))  # in one go
        return normal.contiguous(memory_format=torch.channels_last)


IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
