"""`dataset`: what lies in data/raw and what its masks mean."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from pspnet.config.section import Section

MOST_MASK_VALUE = 65535
COLOR = re.compile("#[0-9a-fA-F]{6}")


def _are_mask_values(value: Any) -> Any:
    for one in value if isinstance(value, list) else [value]:
        number = isinstance(one, int) and not isinstance(one, bool) and 0 <= one <= MOST_MASK_VALUE
        if not number and not (isinstance(one, str) and COLOR.fullmatch(one)):
            raise ValueError(
                f"a whole number from 0 to {MOST_MASK_VALUE}, a colour such as '#dc143c', or several in []"
            )
    return value


MaskValue = int | str
MaskValues = Annotated[list[MaskValue], BeforeValidator(_are_mask_values)]
ClassValues = Annotated[MaskValue | list[MaskValue], BeforeValidator(_are_mask_values)]
ColorPart = Annotated[int, Field(ge=0, le=255)]


def _one_parenthesis(pattern: str) -> str:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"a regular expression ({error})") from None
    if groups < 1:
        raise ValueError("a regular expression with a parenthesis, such as ^(scene[0-9]+)")
    return pattern


Pattern = Annotated[str, AfterValidator(_one_parenthesis)]


class _Folders(Section):
    images: str
    """Folder of the images, below data/raw; `.` is data/raw itself. A .zip or .tar counts as what it holds, unpacked
    where it lies."""
    masks: str
    """Folder of the masks, below data/raw; it may be that of the images. An image without a mask is used for
    pretraining only."""


class FolderParams(_Folders):
    """Images and masks told apart and paired by their names."""

    layout: Literal["folder"]
    image_names: Pattern
    """Regular expression that the whole path of an image below its folder matches; its parentheses, joined by `/`, are
    the image's id. `(.*)\\.\\w+`: the path without suffix. `(.*)/images/(.*)\\.\\w+`: of train/images/1.png train/1."""
    mask_names: Pattern
    """The same of a mask, which belongs to the image of the same id, such as `(.*)_gt\\.png`. What matches both is a
    mask."""
    mask_kind: Literal["numbers", "colors", "levels", "instances"]
    """What the pixels of a mask say. `numbers`: a gray value or palette index. `colors`: a colour, as in `road:
    '#804080'`. `levels`: 1 from mask_threshold on, else 0, for masks that were blurred or saved as JPEG. `instances`: a
    file for each object, 1 where any of them has mask_threshold or more."""
    mask_threshold: Annotated[int, Field(ge=1, le=65535)]
    """See mask_kind; of 8-bit masks 128 is the middle."""


class CityscapesParams(_Folders):
    """leftImg8bit/SPLIT/CITY/*_leftImg8bit.png and gtFine/SPLIT/CITY/*_gtFine_LABELS.png."""

    layout: Literal["cityscapes"]
    labels: Literal["labelIds", "labelTrainIds"]
    """Which masks: numbers of 34 labels, or of the 19 that are trained on."""


class VocParams(_Folders):
    """JPEGImages/*.jpg and SegmentationClass/*.png of the same names, official splits in ImageSets/Segmentation."""

    layout: Literal["voc"]
    splits: str
    """Folder of train.txt, val.txt and test.txt, each a list of names; where there is none the groups decide."""


class Ade20kParams(_Folders):
    """images/training/*.jpg and annotations/training/*.png, of scene parsing: 150 classes; 0 is not annotated."""

    layout: Literal["ade20k"]


SourceParams = FolderParams | CityscapesParams | VocParams | Ade20kParams


class DatasetParams(Section):
    source: Annotated[SourceParams, Field(discriminator="layout")]
    """How the data lie in data/raw."""
    classes: dict[str, ClassValues]
    """Class name -> its value (or values) in the masks, a number or a colour such as '#dc143c'. {}: they are named in
    data/raw/classes.yaml."""
    colors: dict[str, list[ColorPart]]
    """Class name -> [red, green, blue] in pictures; a class not listed gets a colour of its own."""
    ignore_values: MaskValues
    """Mask values that say "not annotated": neither trained on nor scored."""
    group_pattern: Pattern
    """Regular expression on an image's id (its path without suffix); its first parenthesis is the group (scene,
    patient, video) that may not be on two sides of a split. `(.*)`: every image is a group of its own."""

    @field_validator("colors")
    @classmethod
    def _are_rgb(cls, colors: dict[str, list[int]]) -> dict[str, list[int]]:
        if any(len(color) != 3 for color in colors.values()):
            raise ValueError("three numbers from 0 to 255 for each class")
        return colors
