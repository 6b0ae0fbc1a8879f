"""Files, sorted by the id in their names. They are kept in Arrow, because a million Python strings would take a
gigabyte.
"""

from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any

import pyarrow as pa

CHUNK = 10_000


class FilesById:
    """Fill it with `add` first, then read it with `by_id`."""

    def __init__(self) -> None:
        self._held: list[tuple[str, str]] = []  # id, path below raw
        self._packed: list[Any] = []  # pyarrow.Tables
        self.count = 0

    def add(self, name: str, path: str) -> None:
        self._held.append((name, path))
        self.count += 1
        if len(self._held) >= CHUNK:
            self._pack()

    def _pack(self) -> None:
        columns = [pa.array(column, pa.large_string()) for column in zip(*self._held, strict=True)]
        self._packed.append(pa.table(columns, ["id", "path"]))
        self._held = []

    def by_id(self) -> Iterator[tuple[str, list[str]]]:
        """Yield (id, paths) in Python's sort order for strings."""
        if self._held:
            self._pack()
        if not self._packed:
            return
        self._packed = [pa.concat_tables(self._packed).sort_by([("id", "ascending"), ("path", "ascending")])]
        batches = self._packed[0].to_batches(CHUNK)
        rows = (row for batch in batches for row in zip(*(c.to_pylist() for c in batch.columns), strict=True))
        for name, own in groupby(rows, itemgetter(0)):
            yield name, [path for _, path in own]


def joined(images: FilesById, masks: FilesById) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield (id, its images, its masks), sorted by id. Images or masks may be empty."""
    image_rows, mask_rows = images.by_id(), masks.by_id()
    image, mask = next(image_rows, None), next(mask_rows, None)
    while image or mask:
        name = min(row[0] for row in (image, mask) if row)
        own_images, own_masks = [], []
        if image and image[0] == name:
            own_images, image = image[1], next(image_rows, None)
        if mask and mask[0] == name:
            own_masks, mask = mask[1], next(mask_rows, None)
        yield name, own_images, own_masks
