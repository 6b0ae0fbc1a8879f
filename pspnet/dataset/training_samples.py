"""Images with masks for training: augmented crops, all the same size."""

import numpy as np
import torch
from torch import Tensor

from pspnet.dataset.samples import Samples


class TrainingCrops(Samples):
    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        epoch, position = key
        shard, row = self._places[position]
        seed = int(np.random.SeedSequence([self._seed, epoch, position]).generate_state(1)[0] >> 1)
        image, mask = self._augmentation.image_and_mask(
            self._reader.image(shard, row), self._reader.mask(shard, row), seed
        )
        return {
            "image": torch.from_numpy(image),  # (H, W, 3) uint8
            "mask": torch.from_numpy(mask),  # (H, W) uint8
        }
