"""What a look at a folder has found."""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from pspnet.dataset.adapters.pairs import Found
from pspnet.dataset.inspection.listing import Listing
from pspnet.dataset.inspection.looking import ImageFacts, MaskFacts
from pspnet.dataset.inspection.meaning import Remark
from pspnet.dataset.inspection.recognition import Recognised
from pspnet.dataset.inspection.section import as_yaml
from pspnet.dataset.inspection.sequences import EVERY_IMAGE, Grouping, Neighbours, SplitList
from pspnet.dataset.masks import COLOR, spelled
from pspnet.errors import Problem

IGNORED = "(ignored)"


@dataclass
class Inspection:
    listing: Listing
    layout: Recognised | None = None  # the one that the section is for
    others: list[Recognised] = field(default_factory=list)  # that it also looks like, or would, could it be read
    images: list[Found] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    looked: ImageFacts = field(default_factory=ImageFacts)
    masks: MaskFacts = field(default_factory=MaskFacts)
    values: pd.DataFrame | None = None
    class_names: dict[int, str] = field(default_factory=dict)  # by value
    neighbours: Neighbours | None = None
    groupings: list[Grouping] = field(default_factory=list)
    group_pattern: str = EVERY_IMAGE
    lists: list[SplitList] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    dataset: dict[str, Any] | None = None
    prepare: dict[str, tuple[Any, str]] = field(default_factory=dict)
    only_masks: bool = False
    sheet: bytes | None = None

    @property
    def labelled(self) -> list[Found]:
        return [item for item in self.images if item.mask]

    @property
    def missing(self) -> str:
        """Why there is no layout."""
        if not self.listing.images:
            return "no image, by the suffix of its name, and no annotation that is known"
        if self.only_masks:
            return "pictures that look like masks, and no images that they belong to"
        return (
            "images and no masks. That is enough for pretraining only: some images need masks to learn from, and some "
            "more to be measured on"
        )

    def class_name(self, value: int) -> str:
        """As the layout, a list beside the data or the section below names it."""
        if value in self.class_names:
            return self.class_names[value]
        classes = self.dataset["classes"] if self.dataset else {}
        ignored = self.dataset["ignore_values"] if self.dataset else []
        written = spelled(value).strip("'") if value >= COLOR else value
        return next((name for name, own in classes.items() if own == written), IGNORED if written in ignored else "")

    @property
    def section(self) -> str:
        return as_yaml(self.dataset, self.prepare) if self.dataset else ""
