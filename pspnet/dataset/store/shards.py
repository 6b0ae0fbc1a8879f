"""Samples in memory-mapped Arrow files, split so that new samples change only the files they fall into."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pspnet.dataset.store.pixels import decode_image, decode_mask
from pspnet.dataset.store.splits import Split, stable_uniform
from pspnet.errors import Problem, UserError

MOST_AVERAGES = 4  # a shard that reaches this multiple of the average size is always cut
SHARD_FIX = "Remove the prepared set and create it again: dvc repro prepare"

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "split": pa.string(),
        "image": pa.large_binary(),
        "mask": pa.large_binary(),
        "height": pa.int32(),
        "width": pa.int32(),
        "group": pa.string(),
        "source": pa.string(),
        "sha256": pa.string(),
    }
)


@dataclass(frozen=True)
class Record:
    """One row of a shard. Each field is a column."""

    id: str
    split: Split
    image: bytes  # encoded
    mask: bytes | None
    height: int
    width: int
    group: str
    source: str  # path relative to the raw folder
    sha256: str

    @property
    def size(self) -> int:
        return len(self.image) + len(self.mask or b"")


def digests(image: bytes, mask: bytes | None) -> tuple[bytes, bytes]:
    """Return (digest of the image, digest of image and mask)."""
    # The length goes first, because otherwise bytes could move from the image to the mask unnoticed.
    total = hashlib.sha256(len(image).to_bytes(8, "big"))
    total.update(image)
    alone = total.digest()
    if mask is None:
        return alone, alone
    total.update(mask)
    return alone, total.digest()


class Shard(NamedTuple):
    name: str
    samples: int
    bytes: int


class ShardWriter:
    """Write records, which must arrive sorted by id. One shard at a time is kept in memory."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self.shards: list[Shard] = []
        self._folder, self._shard_bytes = folder, shard_bytes
        self._records: list[Record] = []
        self._held_bytes = 0
        folder.mkdir()

    def add(self, record: Record) -> None:
        self._records.append(record)
        self._held_bytes += record.size
        # Only this record determines whether a shard ends here, which happens every shard_bytes on average.
        ends = stable_uniform(record.id) < record.size / self._shard_bytes
        if ends or self._held_bytes >= MOST_AVERAGES * self._shard_bytes:
            self._write()

    def close(self) -> None:
        if self._records:
            self._write()

    def _write(self) -> None:
        path = self._folder / f"{len(self.shards):05d}.arrow"
        arrays = [pa.array([getattr(record, f.name) for record in self._records], f.type) for f in SCHEMA]
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
            writer.write_batch(pa.record_batch(arrays, schema=SCHEMA))
        self.shards.append(Shard(path.name, len(self._records), path.stat().st_size))
        self._records, self._held_bytes = [], 0


class ShardReader:
    """Pixels, looked up by (shard, row) from the index. It is small when pickled, because each process opens the shards
    it reads.
    """

    def __init__(self, folder: Path, shard_names: Sequence[str]) -> None:
        self._folder, self._names = folder, tuple(shard_names)
        self._open: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def image(self, shard: int, row: int) -> NDArray[np.uint8]:
        """Return the image of a sample: (H, W, 3)."""
        return decode_image(self._encoded("image", shard, row))

    def mask(self, shard: int, row: int) -> NDArray[np.uint8]:
        """Return the mask of a sample that has one: (H, W)."""
        return decode_mask(self._encoded("mask", shard, row))

    def source(self, shard: int, row: int) -> str:
        """Return the image's path in the raw data."""
        return str(self._value("source", shard, row).as_py())

    def _encoded(self, column: str, shard: int, row: int) -> memoryview:
        """Return the bytes in the mapped shard without copying them."""
        return memoryview(self._value(column, shard, row).as_buffer())

    def _value(self, column: str, shard: int, row: int) -> Any:
        if shard not in self._open:
            self._open[shard] = open_shard(self._folder / self._names[shard])
        return self._open[shard].column(column)[int(row)]


def open_shard(path: Path) -> Any:
    """Return a shard as one pyarrow.RecordBatch. Only bytes that are accessed are read from disk."""
    try:
        with pa.memory_map(str(path)) as file:  # the batch keeps the map, not an open file
            return pa.ipc.open_file(file).get_batch(0)
    except FileNotFoundError:
        raise UserError(Problem(str(path), "is missing", "a shard that dataset.json lists", SHARD_FIX)) from None
    except pa.ArrowInvalid as error:
        raise UserError(Problem(str(path), f"cannot be read ({error})", "a complete shard", SHARD_FIX)) from None
