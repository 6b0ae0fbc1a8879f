"""Images with masks for training: augmented crops of one size."""

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pspnet.dataset.store.shards import ShardReader
from pspnet.dataset.transforms import Augmentation


class TrainingCrops(Dataset[dict[str, Tensor]]):
    """Sample (epoch, position) is the same in any process, in any order."""

    def __init__(self, reader: ShardReader, index: pd.DataFrame, augmentation: Augmentation, seed: int) -> None:
        self._reader = reader
        self._places = index[["shard", "row"]].to_numpy(np.int32)
        self._augmentation, self._seed = augmentation, seed

    def __len__(self) -> int:
        return len(self._places)

    def source(self, position: int) -> str:
        """The image's path in the raw data."""
        return self._reader.source(*self._places[position])

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
