"""An image of any size -> class probabilities of the same size. The one way from images to results."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pspnet.model.network import PSPNet
from pspnet.model.preprocessing import Preprocessing


@dataclass(frozen=True)
class Prediction:
    mask: NDArray[np.uint8]  # (H, W) class indices
    confidence: NDArray[np.float32]  # (H, W) probability of that class


@dataclass(frozen=True)
class Predictor:
    network: PSPNet
    preprocessing: Preprocessing
    window_px: int
    window_overlap_px: int
    device: torch.device
    precision: str

    def predict(self, images: NDArray[np.uint8]) -> list[Prediction]:
        """Images of one size, (N, H, W, 3)."""
        probabilities = self.probabilities(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))))
        confidence, mask = probabilities.max(dim=1)
        pairs = zip(mask.to(torch.uint8).cpu().numpy(), confidence.cpu().numpy(), strict=True)
        return [Prediction(mask, confidence) for mask, confidence in pairs]

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> Tensor:  # (N, 3, H, W) uint8 -> (N, K, H, W) float32
        self.network.eval()
        height, width = images.shape[-2:]
        if max(height, width) <= self.window_px:
            return self._whole(images)
        total = torch.zeros((len(images), self.network.architecture.classes, height, width), device=self.device)
        times = torch.zeros((height, width), device=self.device)
        for rows in windows(height, self.window_px, self.window_overlap_px):
            for columns in windows(width, self.window_px, self.window_overlap_px):
                total[..., rows, columns] += self._whole(images[..., rows, columns])
                times[rows, columns] += 1
        return total / times

    def _whole(self, images: Tensor) -> Tensor:
        inputs = self.preprocessing(images.to(self.device))
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            logits = self.network(inputs)
        return logits.float().softmax(dim=1)  # type: ignore[no-any-return]


def windows(length: int, window: int, overlap: int) -> Iterator[slice]:
    """Windows of one size that cover `length`; the last is moved back to end with it."""
    if length <= window:
        yield slice(0, length)
        return
    last = length - window
    for start in range(0, last, window - overlap):
        yield slice(start, start + window)
    yield slice(last, length)
