"""Images without masks, as the views that a self-supervised method asks for."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pspnet.dataset.store.shards import ShardReader
from pspnet.dataset.transforms import Augmentation

MakeViews = Callable[[Callable[[], NDArray[np.uint8]], Any, np.random.Generator], Mapping[str, NDArray[np.generic]]]


class UnlabeledViews(Dataset[dict[str, Tensor]]):
    """Sample (epoch, position) is the same in any process, in any order."""

    def __init__(
        self,
        reader: ShardReader,
        index: pd.DataFrame,
        augmentation: Augmentation,
        views: MakeViews,
        params: Any,
        seed: int,
    ) -> None:
        self._reader = reader
        self._places = index[["shard", "row"]].to_numpy(np.int32)
        self._augmentation, self._views, self._params, self._seed = augmentation, views, params, seed

    def __len__(self) -> int:
        return len(self._places)

    def source(self, position: int) -> str:
        """The image's path in the raw data."""
        return self._reader.source(*self._places[position])

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        epoch, position = key
        shard, row = self._places[position]
        rng = np.random.default_rng([self._seed, epoch, position])
        image = self._reader.image(shard, row)
        views = self._views(lambda: self._augmentation.image(image, int(rng.integers(2**31))), self._params, rng)
        return {name: torch.from_numpy(np.asarray(value, order="C")) for name, value in views.items()}
