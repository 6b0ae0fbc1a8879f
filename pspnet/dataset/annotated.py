"""Whole images with masks, for evaluation."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pspnet.dataset.store.shards import ShardReader


class Annotated(NamedTuple):
    id: str
    group: str
    image: NDArray[np.uint8]  # (H, W, 3)
    mask: NDArray[np.uint8]  # (H, W)


class AnnotatedImages:
    """Whole images and their masks, in index order."""

    def __init__(self, reader: ShardReader, index: pd.DataFrame) -> None:
        self._reader = reader
        self._rows = list(index[["id", "group", "shard", "row"]].itertuples(index=False, name=None))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> Annotated:
        name, group, shard, row = self._rows[position]
        return Annotated(name, group, self._reader.image(shard, row), self._reader.mask(shard, row))

    def __iter__(self) -> Iterator[Annotated]:
        return (self[position] for position in range(len(self)))
