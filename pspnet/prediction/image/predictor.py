"""Turns images of any size into class probabilities of the same size. Every prediction is computed here."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pspnet.metrics import NOTHING_IGNORED, confusion_matrix
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.network import PSPNet
from pspnet.prediction.image.protocol import PredictionProtocol
from pspnet.prediction.image.windows import shares, windows


@dataclass(frozen=True)
class Prediction:
    mask: NDArray[np.uint8]  # (H, W) class indices
    confidence: NDArray[np.float32]  # (H, W) probability of the predicted class

    def class_shares(self, classes: int) -> NDArray[np.float64]:
        """The share of pixels in each class."""
        pixels = np.diag(confusion_matrix(self.mask, self.mask, classes, NOTHING_IGNORED))
        return pixels / self.mask.size


@dataclass(frozen=True)
class Member:
    """A network with the preprocessing that it was trained with."""

    network: PSPNet
    preprocessing: Preprocessing


@dataclass(frozen=True)
class Predictor:
    """Predicts with one or more networks, the members, which must have the same classes. Probabilities are averaged."""

    members: Sequence[Member]
    protocol: PredictionProtocol
    device: torch.device
    precision: str

    def predict(self, images: NDArray[np.uint8]) -> list[Prediction]:
        """Predict images of the same size, (N, H, W, 3)."""
        masks = np.empty(images.shape[:3], np.uint8)
        confidences = np.empty(images.shape[:3], np.float32)
        for rows, probabilities in self.bands(images):
            confidence, mask = probabilities.max(dim=1)
            masks[:, rows] = mask.to(torch.uint8).cpu().numpy()
            confidences[:, rows] = confidence.cpu().numpy()
            del probabilities  # free this memory before the next probabilities need as much
        return [Prediction(mask, confidence) for mask, confidence in zip(masks, confidences, strict=True)]

    def bands(self, images: NDArray[np.uint8]) -> Iterator[tuple[slice, Tensor]]:
        """Take images of the same size, (N, H, W, 3), and yield bands of rows with their probabilities (N, K, rows, W).

        The bands go from top to bottom. Whatever the height, only the rows under the current windows are in memory.
        """
        for member in self.members:
            member.network.eval()
        height = images.shape[1]
        looks = sorted(
            (_Look(scale, *part) for scale in self.protocol.scales for part in self._parts(height, scale)),
            key=lambda look: look.rows.start,
        )
        edges = sorted({edge for look in looks for edge in (look.rows.start, look.rows.stop)})
        strips = deque(slice(*ends) for ends in pairwise(edges))  # each strip is entirely inside or outside a window
        totals: dict[int, Tensor] = {}  # first row of an unfinished strip -> (N, K, rows, W)
        next_tops = [*(look.rows.start for look in looks[1:]), height]
        for look, next_top in zip(looks, next_tops, strict=True):
            self._add(images, look, strips, totals)
            while strips and strips[0].stop <= next_top:
                finished = strips.popleft()
                yield finished, totals.pop(finished.start)

    @torch.inference_mode()
    def _add(
        self, images: NDArray[np.uint8], look: "_Look", strips: Iterable[slice], totals: dict[int, Tensor]
    ) -> None:
        """Add the results of all windows in these rows to the strips that the rows contain."""
        width = images.shape[2]
        own = [strip for strip in strips if look.rows.start <= strip.start and strip.stop <= look.rows.stop]
        for columns, column_shares in self._parts(width, look.scale):
            counts = look.row_shares[:, None] * column_shares / self._times
            values = self._sum(images[:, look.rows, columns], look.scale) * counts
            for strip in own:
                if strip.start not in totals:
                    shape = (*values.shape[:2], strip.stop - strip.start, width)
                    totals[strip.start] = torch.zeros(shape, device=self.device)
                within = slice(strip.start - look.rows.start, strip.stop - look.rows.start)
                totals[strip.start][..., columns] += values[:, :, within]

    @property
    def _flips(self) -> tuple[bool, ...]:
        return (False, True) if self.protocol.flip else (False,)

    @property
    def _times(self) -> int:
        """The number of predictions averaged at each pixel."""
        return len(self.members) * len(self.protocol.scales) * len(self._flips)

    def _parts(self, length: int, scale: float) -> list[tuple[slice, Tensor]]:
        """Windows along one side of the unscaled image, with their weights."""
        window = round(self.protocol.window_px / scale)
        overlap = min(round(self.protocol.window_overlap_px / scale), window - 1)
        parts = windows(length, window, overlap)
        own_shares = shares(length, parts, overlap)
        return [(part, share.to(self.device)) for part, share in zip(parts, own_shares, strict=True)]

    def _sum(self, images: NDArray[np.uint8], scale: float) -> Tensor:  # (N, h, w, 3) -> (N, K, h, w) float32
        """The sum of all members' probabilities for the images and, with `flip`, their mirror images."""
        # A copy, because torch does not accept read-only arrays. Its memory is already channels_last.
        pixels = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).to(self.device)
        size = images.shape[1:3]
        scaled = [max(1, round(side * scale)) for side in size]
        total = torch.zeros((), device=self.device)
        for member in self.members:
            inputs = _resized(member.preprocessing(pixels), scaled)
            for flipped in self._flips:
                with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
                    logits = member.network(inputs.flip(-1) if flipped else inputs)
                probabilities = _resized(logits.float().softmax(dim=1), size)
                total = total + (probabilities.flip(-1) if flipped else probabilities)
        return total


@dataclass(frozen=True)
class _Look:
    """Rows of the image that are covered by a row of windows at one scale."""

    scale: float
    rows: slice
    row_shares: Tensor


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    return maps if maps.shape[-2:] == tuple(size) else F.interpolate(maps, size, mode="bilinear", align_corners=False)
