"""Random augmentation of an image, with its mask where it has one: the only module that knows albumentations."""

import math

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


class Augmentation:
    """Scale, crop (or pad), mirror, colours. All randomness comes from the seed given with each call."""

    def __init__(
        self,
        height_px: int,
        width_px: int,
        scale_min: float,
        scale_max: float,
        flip_probability: float,
        color_jitter: float,
        fill: tuple[int, int, int],
        ignore: int,
    ) -> None:
        self._least_px = math.ceil(1 / scale_min) + 1
        cv2.setNumThreads(0)  # there is one loader process per core already
        self._compose = A.Compose(
            [
                A.RandomScale((scale_min - 1, scale_max - 1), mask_interpolation=cv2.INTER_NEAREST, p=1),
                A.PadIfNeeded(height_px, width_px, border_mode=cv2.BORDER_CONSTANT, fill=fill, fill_mask=ignore, p=1),
                A.RandomCrop(height_px, width_px, p=1),
                A.HorizontalFlip(p=flip_probability),
                A.ColorJitter((1 - color_jitter, 1 + color_jitter), (1 - color_jitter, 1 + color_jitter),
                              (1 - color_jitter, 1 + color_jitter), (0, 0), p=1 if color_jitter else 0),
            ]
        )  # fmt: skip

    def image(self, image: Pixels, seed: int) -> Pixels:
        self._compose.set_random_seed(seed)
        return self._compose(image=self._thick(image))["image"]  # type: ignore[no-any-return]

    def image_and_mask(self, image: Pixels, mask: Pixels, seed: int) -> tuple[Pixels, Pixels]:
        self._compose.set_random_seed(seed)
        both = self._compose(image=self._thick(image), mask=self._thick(mask))
        return both["image"], both["mask"]

    def _thick(self, pixels: Pixels) -> Pixels:
        """A picture of one row would vanish when it is made smaller, so the row is repeated."""
        missing = [(0, max(0, self._least_px - side)) for side in pixels.shape[:2]]
        return np.pad(pixels, [*missing, (0, 0)][: pixels.ndim], mode="edge") if np.any(missing) else pixels
