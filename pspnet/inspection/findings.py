"""The result of inspecting a folder of raw data."""

import re
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from pspnet.errors import Problem
from pspnet.inspection.facts import ImageFacts, MaskFacts
from pspnet.inspection.layout_guess import LayoutGuess
from pspnet.inspection.listing import Listing
from pspnet.inspection.meaning import Remark, brightness
from pspnet.inspection.section import as_yaml
from pspnet.inspection.sequences import EVERY_IMAGE, Grouping, Neighbors
from pspnet.inspection.split_lists import SplitList
from pspnet.raw.layouts.pairs import FoundImage
from pspnet.raw.masks import COLOR, spelled

IGNORED = "(ignored)"
MOST_TABLES = 20  # maximum number of tables to open


@dataclass
class Inspection:
    listing: Listing
    layout: LayoutGuess | None = None  # the layout of the proposed section
    number: int = 1  # number of this reading in `readings`
    readings: list[LayoutGuess] = field(default_factory=list)  # every way to read the folder, most likely first
    others: list[LayoutGuess] = field(default_factory=list)  # layouts with which the folder cannot be read
    choices: list["Inspection"] = field(default_factory=list)  # one for each reading, if the user must choose
    images: list[FoundImage] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    image_facts: ImageFacts = field(default_factory=ImageFacts)
    mask_facts: MaskFacts = field(default_factory=MaskFacts)
    values: pd.DataFrame | None = None
    class_names: dict[int, str] = field(default_factory=dict)  # value -> name
    neighbors: Neighbors | None = None
    groupings: list[Grouping] = field(default_factory=list)
    group_pattern: str = EVERY_IMAGE
    lists: list[SplitList] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    dataset: dict[str, Any] | None = None
    prepare: dict[str, tuple[Any, str]] = field(default_factory=dict)
    unclear: bool = False  # True if it is unclear which values are classes
    only_masks: bool = False
    sheet: bytes | None = None

    @property
    def labeled(self) -> list[FoundImage]:
        return [item for item in self.images if item.mask]

    @property
    def missing(self) -> str:
        """If no layout was found: what the folder contains and what is missing."""
        if not self.listing.images:
            return "no files with an image suffix, and no known annotations"
        if self.only_masks:
            return "pictures that look like masks, but no images that belong to them"
        if table := self._table_of_runs():
            return f"images, and {table} with masks as run lengths, which no layout reads: save the masks as PNG files"
        return (
            "images but no masks. That is enough only for pretraining: fine-tuning needs masks in train, and "
            "evaluation needs masks in val and test"
        )

    def _table_of_runs(self) -> str:
        """The name of a CSV file such as Kaggle's, with a column EncodedPixels or rle, or '' if there is none."""
        for file in self.listing.ending(".csv")[:MOST_TABLES]:
            columns = self.listing.text(file).partition("\n")[0].lower()
            if re.search(r"encodedpixels|\brle\b", columns):
                return file.name
        return ""

    def class_name(self, value: int) -> str:
        """The class name of a value, from the layout, a list next to the data, or the proposed section."""
        if value in self.class_names:
            return self.class_names[value]
        if not self.dataset:
            return ""
        source, classes = self.dataset["source"], self.dataset["classes"]
        if source.get("mask_kind") in ("levels", "instances"):
            value = int(brightness(value) >= source["mask_threshold"])
        written = spelled(value).strip("'") if value >= COLOR else value
        found = (name for name, own in classes.items() if written in (own if isinstance(own, list) else [own]))
        return next(found, IGNORED if written in self.dataset["ignore_values"] else "")

    @property
    def section(self) -> str:
        return as_yaml(self.dataset, self.prepare) if self.dataset else ""
