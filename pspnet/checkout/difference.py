"""The difference between two prepared sets. A sample's bytes are compared only if its digest differs."""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pspnet.dataset.store.pixels import decode_mask
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.dataset.store.shards import open_shard
from pspnet.dataset.store.splits import SPLITS
from pspnet.raw.problems import Outcome

Counts = NDArray[np.int64]  # pixels of each class that occurs in either set


class Move(NamedTuple):
    id: str
    before: str
    now: str


class ClassPixels(NamedTuple):
    """The number of pixels of a class in the masks of each set."""

    name: str
    before: int
    now: int
    gained: int  # counts only masks that are in both sets, as does `lost`
    lost: int


@dataclass
class Changes:
    """The counts before and now, and sorted lists of the ids that were added, removed or changed."""

    before: int
    now: int
    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)


@dataclass
class Difference:
    images: Changes
    masks: Changes
    moved: list[Move]  # images that are now in another split
    recoded: list[str]  # masks with the same classes but different bytes, such as different class numbers
    classes_added: list[str]
    classes_removed: list[str]
    classes_renamed: list[tuple[str, str]]
    labels: list[ClassPixels]  # one for each class of either set, then one for ignored pixels
    quarantined: Changes  # files, each with its kind of problem
    duplicates: Changes


def compare(before: PreparedDataset, now: PreparedDataset, tick: Callable[[int, int, str], None]) -> Difference:
    old, new = _Samples(before), _Samples(now)
    both = old.table.merge(new.table, on="id", suffixes=("_before", "_now"))
    same = both["sha256_before"] == both["sha256_now"]
    renamed = _renamed(before.classes, now.classes, certain=bool((same & both["has_mask_now"]).any()))
    names = [renamed.get(name, name) for name in before.classes]
    every = [*now.classes, *(name for name in names if name not in now.classes)]
    numbers_before, numbers_now = _numbers(names, every), _numbers(now.classes, every)
    gone, come = _without(old.table, both), _without(new.table, both)
    moved = both[both["split_before"] != both["split_now"]]
    difference = Difference(
        images=Changes(len(old.table), len(new.table), added=come["id"].tolist(), removed=gone["id"].tolist()),
        masks=Changes(
            int(old.table["has_mask"].sum()), int(new.table["has_mask"].sum()),
            added=come.loc[come["has_mask"], "id"].tolist(), removed=gone.loc[gone["has_mask"], "id"].tolist(),
        ),
        moved=[Move(*row) for row in moved[["id", "split_before", "split_now"]].itertuples(index=False)],
        recoded=[],
        classes_added=[name for name in now.classes if name not in names],
        classes_removed=[name for name in names if name not in now.classes],
        classes_renamed=[*renamed.items()],
        labels=[],
        quarantined=_left_out(before, now, "quarantined"),
        duplicates=_left_out(before, now, "duplicate"),
    )  # fmt: skip
    gained, lost = np.zeros(len(every) + 1, np.int64), np.zeros(len(every) + 1, np.int64)
    if any(one != other for one, other in zip(names, now.classes, strict=False)):
        looked_at = both[~same | both["has_mask_now"]]  # the same number may mean a different class
    else:
        looked_at = both[~same]
    for done, row in enumerate(looked_at.itertuples(index=False), start=1):
        if row.sha256_before != row.sha256_now and old.differs(new, "image", row):
            difference.images.changed.append(row.id)
        if row.has_mask_before and row.has_mask_now:
            one = numbers_before[old.mask(row.shard_before, row.row_before)]
            other = numbers_now[new.mask(row.shard_now, row.row_now)]
            if not np.array_equal(one, other):
                here = one != other if one.shape == other.shape else slice(None)
                gained += np.bincount(other[here].ravel(), minlength=len(gained))
                lost += np.bincount(one[here].ravel(), minlength=len(lost))
                difference.masks.changed.append(row.id)
            elif old.differs(new, "mask", row):
                difference.recoded.append(row.id)
        elif row.has_mask_now:
            difference.masks.added.append(row.id)
        elif row.has_mask_before:
            difference.masks.removed.append(row.id)
        tick(done, len(looked_at), row.id)
    difference.masks.added.sort()
    difference.masks.removed.sort()
    totals = _totals(before, numbers_before, len(every)), _totals(now, numbers_now, len(every))
    columns = (column.tolist() for column in (*totals, gained, lost))
    rows = zip([*every, "(ignored)"], *columns, strict=True)
    difference.labels = [ClassPixels(*row) for row in rows]
    return difference


class _Samples:
    def __init__(self, dataset: PreparedDataset) -> None:
        self._batches = [open_shard(dataset.folder / "shards" / shard.name) for shard in dataset.shards]
        self.table = pd.concat(list(self._rows()), ignore_index=True)

    def _rows(self) -> Iterator[pd.DataFrame]:
        for shard, batch in enumerate(self._batches):
            rows = batch.select(["id", "split", "sha256"]).to_pandas()
            has_mask = batch.column("mask").is_valid().to_numpy(zero_copy_only=False)
            yield rows.assign(has_mask=has_mask, shard=shard, row=range(len(rows)))

    def encoded(self, column: str, shard: int, row: int) -> Any:
        """The bytes of an image or mask, as a pyarrow.Buffer."""
        return self._batches[shard].column(column)[row].as_buffer()

    def mask(self, shard: int, row: int) -> NDArray[np.uint8]:
        return decode_mask(memoryview(self.encoded("mask", shard, row)))

    def differs(self, now: "_Samples", column: str, row: Any) -> bool:
        one = self.encoded(column, row.shard_before, row.row_before)
        return not one.equals(now.encoded(column, row.shard_now, row.row_now))


def _left_out(before: PreparedDataset, now: PreparedDataset, outcome: Outcome) -> Changes:
    old, new = _problems(before, outcome), _problems(now, outcome)
    return Changes(
        len(old),
        len(new),
        added=[f"{file} ({kind})" for file, kind in new.items() if file not in old],
        removed=[f"{file} ({kind})" for file, kind in old.items() if file not in new],
        changed=[f"{file} ({old[file]} -> {kind})" for file, kind in new.items() if old.get(file, kind) != kind],
    )


def _problems(dataset: PreparedDataset, outcome: Outcome) -> dict[str, str]:
    """Files that had a problem with this outcome -> kind of problem, sorted by file."""
    with (dataset.folder / "problems.csv").open(encoding="utf-8", newline="") as file:
        return dict(sorted((row["file"], row["kind"]) for row in csv.DictReader(file) if row["outcome"] == outcome))


def _without(samples: pd.DataFrame, others: pd.DataFrame) -> pd.DataFrame:
    # Uses a merge because isin() would create an object for every id.
    marked = samples.merge(others[["id"]], on="id", how="left", indicator=True)
    return marked[marked["_merge"] == "left_only"]


def _renamed(before: Sequence[str], now: Sequence[str], certain: bool) -> dict[str, str]:
    """Old -> new names of classes that kept their number. This is certain only if some masks are unchanged."""
    pairs = zip(before, now, strict=False) if certain else []
    return {one: other for one, other in pairs if one not in now and other not in before}


def _numbers(names: Sequence[str], every: Sequence[str]) -> NDArray[np.uint16]:
    """A (256,) array: number in a mask -> index in `every`. Ignored pixels get the index after the last class."""
    numbers = np.full(256, len(every), np.uint16)
    numbers[: len(names)] = [every.index(name) for name in names]
    return numbers


def _totals(dataset: PreparedDataset, numbers: NDArray[np.uint16], classes: int) -> Counts:
    totals = np.zeros(classes + 1, np.int64)
    for split in SPLITS:
        pixels = dataset.class_pixels[split]
        totals[numbers[: len(pixels)]] += pixels
        totals[-1] += dataset.ignored_pixels[split]
    return totals
