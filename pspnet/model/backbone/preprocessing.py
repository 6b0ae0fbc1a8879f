"""Turn pixels into the network's input. Training, evaluation and serving all use this."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Preprocessing:
    mean: tuple[float, ...]  # mean of each channel, usually red, green and blue; 0 is black and 1 is white
    std: tuple[float, ...]

    @property
    def mean_color(self) -> tuple[int, int, int]:
        """The color used to pad RGB images, which is close to 0 after normalization."""
        red, green, blue = (round(255 * channel) for channel in self.mean)
        return red, green, blue

    def __call__(self, images: Tensor) -> Tensor:
        """Convert (N, C, H, W) uint8 to float32 with about zero mean and unit variance, in the fastest layout for
        convolutions.
        """
        mean = torch.tensor(self.mean, device=images.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, -1, 1, 1)
        normal = torch.addcmul(-mean / std, images.float(), 1 / (255 * std))  # a single operation
        return normal.contiguous(memory_format=torch.channels_last)

    def pixels(self, normal: Tensor) -> Tensor:
        """Convert what `__call__` returns back to uint8. Values outside of the range are clipped."""
        mean = torch.tensor(self.mean, device=normal.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=normal.device).view(1, -1, 1, 1)
        return (255 * (normal * std + mean)).round().clamp(0, 255).to(torch.uint8)


IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
