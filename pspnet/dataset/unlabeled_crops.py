"""Images without masks for training with pseudo labels: a weak view, and strong views of the same crop."""

import math

import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from pspnet.config.finetune import PseudoLabelParams
from pspnet.dataset.augmentation import Augmentation, Pixels, color_matrix
from pspnet.dataset.samples import Samples
from pspnet.dataset.store.shards import ShardReader

# As published (UniMatch).
JITTER_PROBABILITY = 0.8
BLUR_SIGMAS = (0.1, 2.0)
BOX_SHARES = (0.02, 0.4)  # of the crop's area
BOX_RATIOS = (0.3, 1 / 0.3)  # of the box's height to its width, for a square crop


class UnlabeledCrops(Samples):
    """The weak view is scaled, rotated, mirrored and cropped; a strong view is the weak one with other colors.

    `inside` says which pixels show the image and not the fill; `box_N` which pixels of `strong_N` come from another
    image of the batch.
    """

    def __init__(
        self,
        reader: ShardReader,
        index: pd.DataFrame,
        augmentation: Augmentation,
        params: PseudoLabelParams,
        strong_views: int,
        seed: int,
    ) -> None:
        super().__init__(reader, index, augmentation, seed)
        self._params, self._strong_views = params, strong_views

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        epoch, position = key
        shard, row = self._places[position]
        rng = np.random.default_rng([self._seed, epoch, position])
        weak, inside = self._augmentation.crop(self._reader.image(shard, row), int(rng.integers(2**31)))
        sample = {"weak": weak, "inside": inside}
        for number in range(self._strong_views):
            sample[f"strong_{number}"] = recolored(weak, self._params, rng)
            mixed = rng.random() < self._params.cutmix_probability
            sample[f"box_{number}"] = drawn_box(inside.shape, rng) if mixed else np.zeros_like(inside)
        return {name: torch.from_numpy(array) for name, array in sample.items()}


def recolored(image: Pixels, params: PseudoLabelParams, rng: np.random.Generator) -> Pixels:
    """The image with other colors, gray or blurred. No pixel moves."""
    jittered, gray, blurred = rng.random(3)
    if jittered < JITTER_PROBABILITY:
        image = cv2.transform(image, color_matrix(image, *(1 + params.color_jitter * rng.uniform(-1, 1, 3))))
    if gray < params.grayscale_probability:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if blurred < params.blur_probability:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(*BLUR_SIGMAS))
    return image


def drawn_box(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.bool_]:
    """True inside a random box: (H, W)."""
    height, width = shape
    area, ratio = rng.uniform(*BOX_SHARES), rng.uniform(*BOX_RATIOS)
    tall = min(1.0, max(area, math.sqrt(area * ratio)))  # shares of the sides: a box that does not fit gets less oblong
    rows, columns = round(height * tall), round(width * area / tall)
    top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
    box = np.zeros((height, width), bool)
    box[top : top + rows, left : left + columns] = True
    return box
