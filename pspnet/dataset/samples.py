"""Images of the prepared set for training, drawn differently in every epoch."""

import numpy as np
import pandas as pd
from torch import Tensor
from torch.utils.data import Dataset

from pspnet.dataset.augmentation import Augmentation
from pspnet.dataset.store.shards import ShardReader


class Samples(Dataset[dict[str, Tensor]]):
    """The sample for (epoch, position) is the same in every process, no matter the order in which samples are read."""

    def __init__(self, reader: ShardReader, index: pd.DataFrame, augmentation: Augmentation, seed: int) -> None:
        self._reader = reader
        self._places = index[["shard", "row"]].to_numpy(np.int32)
        self._augmentation, self._seed = augmentation, seed

    def __len__(self) -> int:
        return len(self._places)

    def source(self, position: int) -> str:
        """Return the image's path in the raw data."""
        return self._reader.source(*self._places[position])
