"""The prepared dataset: a folder of shards, and dataset.json with the facts about them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pandas as pd

from pspnet.dataset.store.shards import Shard, ShardReader, open_shard
from pspnet.dataset.store.splits import Split
from pspnet.errors import Problem, UserError

FORMAT_VERSION = 2

Color = tuple[int, int, int]
Channels = tuple[float, float, float]  # red, green, blue; 0 is black and 1 is white


@dataclass(frozen=True)
class PreparedDataset:
    folder: Path
    classes: tuple[str, ...]
    colors: tuple[Color, ...]
    ignore: int  # the mask value that means "no class"
    mean: Channels  # mean over the pixels of train and unlabeled images
    std: Channels
    images: dict[Split, int]
    masks: dict[Split, int]
    groups: dict[Split, int]
    class_pixels: dict[Split, list[int]]  # in class order
    ignored_pixels: dict[Split, int]
    fingerprint: str
    fingerprints: dict[Split, str]
    shards: tuple[Shard, ...]
    quarantined: int  # images and other files left out because of a problem
    duplicates: int  # images left out as copies
    left_out: int  # files that are not images and were allowed

    @classmethod
    def open(cls, folder: Path) -> Self:
        facts = _read(folder / "dataset.json")
        counts = facts["counts"]
        return cls(
            folder=folder,
            classes=tuple(facts["classes"]),
            colors=tuple((red, green, blue) for red, green, blue in facts["colors"]),
            ignore=facts["ignore"],
            mean=_channels(facts["mean"]),
            std=_channels(facts["std"]),
            images=counts["images"],
            masks=counts["masks"],
            groups=counts["groups"],
            class_pixels=facts["class_pixels"],
            ignored_pixels=facts["ignored_pixels"],
            fingerprint=facts["fingerprint"],
            fingerprints=facts["fingerprints"],
            shards=tuple(Shard(**shard) for shard in facts["shards"]),
            quarantined=counts["quarantined"],
            duplicates=counts["duplicates"],
            left_out=counts["left_out"],
        )

    def write(self) -> None:
        counts = {
            "found": self.found,
            "prepared": sum(self.images.values()),
            "quarantined": self.quarantined,
            "duplicates": self.duplicates,
            "left_out": self.left_out,
            "images": self.images,
            "masks": self.masks,
            "groups": self.groups,
        }
        facts = {
            "format_version": FORMAT_VERSION,
            "classes": self.classes,
            "colors": self.colors,
            "ignore": self.ignore,
            "mean": self.mean,
            "std": self.std,
            "counts": counts,
            "class_pixels": self.class_pixels,
            "ignored_pixels": self.ignored_pixels,
            "fingerprint": self.fingerprint,
            "fingerprints": self.fingerprints,
            "shards": [shard._asdict() for shard in self.shards],
        }
        text = json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False)
        (self.folder / "dataset.json").write_text(text + "\n", encoding="utf-8")

    @property
    def found(self) -> int:
        """The number of images and other files found in the raw data."""
        return sum(self.images.values()) + self.quarantined + self.duplicates + self.left_out

    def in_words(self) -> str:
        duplicates = "1 duplicate" if self.duplicates == 1 else f"{self.duplicates:,} duplicates"
        return (
            f"{self.found:,} found: {sum(self.images.values()):,} prepared ({sum(self.masks.values()):,} with masks), "
            f"{self.quarantined:,} quarantined, {duplicates}, {self.left_out:,} left out"
        )

    def index(self) -> pd.DataFrame:
        """Return one row per sample, sorted by id: id, split, group, source, height, width, has_mask, shard, row."""
        return pd.concat([self._rows(number) for number in range(len(self.shards))], ignore_index=True)

    def _rows(self, number: int) -> pd.DataFrame:
        batch = open_shard(self.folder / "shards" / self.shards[number].name)
        rows = batch.select(["id", "split", "group", "source", "height", "width"]).to_pandas()
        has_mask = batch.column("mask").is_valid().to_numpy(zero_copy_only=False)
        return rows.assign(has_mask=has_mask, shard=number, row=range(len(rows)))

    def annotated(self, split: Split) -> pd.DataFrame:
        """Return the index rows of this split that have a mask."""
        index = self.index()
        return index[index["has_mask"] & (index["split"] == split)]

    def reader(self) -> ShardReader:
        return ShardReader(self.folder / "shards", [shard.name for shard in self.shards])


def _read(path: Path) -> dict[str, Any]:
    fix = "Create it with: dvc repro prepare"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(Problem(str(path), "is missing", "a prepared dataset", fix)) from None
    except ValueError as error:
        raise UserError(Problem(str(path), f"is not valid JSON ({error})", "a prepared dataset", fix)) from None
    version = facts.get("format_version") if isinstance(facts, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(Problem(str(path), f"has format version {version}", f"version {FORMAT_VERSION}", fix))
    return dict(facts)


def _channels(values: list[float]) -> Channels:
    red, green, blue = values
    return red, green, blue
