"""`dataset`: what lies in data/raw and what its masks mean."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from pspnet.config.section import Section

MaskValue = Annotated[int, Field(ge=0, le=65535)]
ColorPart = Annotated[int, Field(ge=0, le=255)]


class DatasetParams(Section):
    layout: Literal["folder"]
    """How the files lie. `folder`: images in one folder, masks of the same names in another; a .zip or .tar in data/raw
    counts as what it holds, unpacked where it lies."""
    images: str
    """Folder of the images, below data/raw."""
    masks: str
    """Folder of the masks, below data/raw. An image without a mask is used for pretraining only."""
    classes: dict[str, MaskValue | list[MaskValue]]
    """Class name -> its value (or values) in the masks. {}: data/raw/classes.yaml names them."""
    colors: dict[str, list[ColorPart]]
    """Class name -> [red, green, blue] in pictures; a class not listed gets a colour of its own."""
    ignore_values: list[MaskValue]
    """Mask values that say "not annotated": neither trained on nor scored."""
    group_pattern: str
    """Regular expression on an image's id (its path without suffix); its first parenthesis is the group (scene,
    patient, video) that may not be on two sides of a split. `(.*)`: every image is a group of its own."""

    @field_validator("group_pattern")
    @classmethod
    def _has_a_parenthesis(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"a regular expression ({error})") from None
        if groups < 1:
            raise ValueError("a regular expression with a parenthesis, such as ^(scene[0-9]+)")
        return pattern

    @field_validator("colors")
    @classmethod
    def _are_rgb(cls, colors: dict[str, list[int]]) -> dict[str, list[int]]:
        if any(len(color) != 3 for color in colors.values()):
            raise ValueError("three numbers from 0 to 255 for each class")
        return colors
