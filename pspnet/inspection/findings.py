"""The result of inspecting a folder."""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from pspnet.errors import Problem
from pspnet.inspection.facts import ImageFacts, MaskFacts
from pspnet.inspection.listing import Listing
from pspnet.inspection.meaning import Remark
from pspnet.inspection.recognition import LayoutGuess
from pspnet.inspection.section import as_yaml
from pspnet.inspection.sequences import EVERY_IMAGE, Grouping, Neighbors, SplitList
from pspnet.raw.layouts.pairs import FoundImage
from pspnet.raw.masks import COLOR, spelled

IGNORED = "(ignored)"


@dataclass
class Inspection:
    listing: Listing
    layout: LayoutGuess | None = None  # the layout of the proposed section
    others: list[LayoutGuess] = field(default_factory=list)  # other guesses, readable or not
    images: list[FoundImage] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    image_facts: ImageFacts = field(default_factory=ImageFacts)
    mask_facts: MaskFacts = field(default_factory=MaskFacts)
    values: pd.DataFrame | None = None
    class_names: dict[int, str] = field(default_factory=dict)  # by value
    neighbors: Neighbors | None = None
    groupings: list[Grouping] = field(default_factory=list)
    group_pattern: str = EVERY_IMAGE
    lists: list[SplitList] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    dataset: dict[str, Any] | None = None
    prepare: dict[str, tuple[Any, str]] = field(default_factory=dict)
    only_masks: bool = False
    sheet: bytes | None = None

    @property
    def labeled(self) -> list[FoundImage]:
        return [item for item in self.images if item.mask]

    @property
    def missing(self) -> str:
        """What the folder has and lacks, if no layout was found."""
        if not self.listing.images:
            return "no files with the suffix of an image, and no known annotations"
        if self.only_masks:
            return "pictures that look like masks, but no images that belong to them"
        return (
            "images but no masks. That is enough only for pretraining: finetuning needs masks in train, and evaluation "
            "needs masks in val and test"
        )

    def class_name(self, value: int) -> str:
        """The value's name in the layout, in a list beside the data, or in the proposed section."""
        if value in self.class_names:
            return self.class_names[value]
        classes = self.dataset["classes"] if self.dataset else {}
        ignored = self.dataset["ignore_values"] if self.dataset else []
        written = spelled(value).strip("'") if value >= COLOR else value
        return next((name for name, own in classes.items() if own == written), IGNORED if written in ignored else "")

    @property
    def section(self) -> str:
        return as_yaml(self.dataset, self.prepare) if self.dataset else ""
