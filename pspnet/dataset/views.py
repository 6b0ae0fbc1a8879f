"""Images without masks, as views for a self-supervised method."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from pspnet.dataset.augmentation import Augmentation
from pspnet.dataset.samples import Samples
from pspnet.dataset.store.shards import ShardReader

MakeViews = Callable[[Callable[[], NDArray[np.uint8]], Any, np.random.Generator], Mapping[str, NDArray[np.generic]]]


class UnlabeledViews(Samples):
    def __init__(
        self,
        reader: ShardReader,
        index: pd.DataFrame,
        augmentation: Augmentation,
        views: MakeViews,
        params: Any,
        seed: int,
    ) -> None:
        super().__init__(reader, index, augmentation, seed)
        self._views, self._params = views, params

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        epoch, position = key
        shard, row = self._places[position]
        rng = np.random.default_rng([self._seed, epoch, position])
        image = self._reader.image(shard, row)
        views = self._views(lambda: self._augmentation.image(image, int(rng.integers(2**31))), self._params, rng)
        tensors = {name: torch.from_numpy(np.asarray(value, order="C")) for name, value in views.items()}
        return {**tensors, "position": torch.tensor(position)}
