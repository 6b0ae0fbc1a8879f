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
        text = isinstance(one, str) and (COLOR.fullmatch(one) or not one.startswith("#"))
        if not number and not text:
            raise ValueError(
                f"a whole number from 0 to {MOST_MASK_VALUE}, a colour such as '#dc143c', a label, or several in []"
            )
    return value


MaskValue = int | str
MaskValues = Annotated[list[MaskValue], BeforeValidator(_are_mask_values)]
ClassValues = Annotated[MaskValue | list[MaskValue], BeforeValidator(_are_mask_values)]
ColorPart = Annotated[int, Field(ge=0, le=255)]


def _is_expression(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"a regular expression ({error})") from None
    return pattern


def _has_parenthesis(pattern: str) -> str:
    if re.compile(pattern).groups < 1:
        raise ValueError("a regular expression with a parenthesis, such as ^(scene[0-9]+)")
    return pattern


Expression = Annotated[str, AfterValidator(_is_expression)]
Pattern = Annotated[Expression, AfterValidator(_has_parenthesis)]


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


class ClassFoldersParams(_Folders):
    """A mask for each class, bright where it is, in a folder that bears its name. Where two are bright the class that
    is later in the alphabet counts, where none is there is background. Folders named train, val or test are official
    splits.
    """

    layout: Literal["class_folders"]
    paired_by: Literal["id", "class_and_id"]
    """`id`: MASKS/CLASS/ID.png is of the image IMAGES/ID.jpg. `class_and_id`: it is of the image ID in a folder CLASS
    anywhere below IMAGES, as in MVTec AD."""
    mask_suffix: str
    """What the name of a mask has behind ID, such as `_mask`."""
    mask_threshold: Annotated[int, Field(ge=1, le=65535)]
    """From which gray value on a mask is bright; of 8-bit masks 128 is the middle."""
    background_folders: list[str]
    """Folders of images that show no class, such as `good`, and have no masks: they are all background."""


class CamvidParams(_Folders):
    """Frames and masks of equal names, or train/ and trainannot/ in one folder. Masks number 11 classes from 0; 11 is
    void. The part of a name before its first `_` is the drive, which is the group; folders are official splits.
    """

    layout: Literal["camvid"]


class _Annotated(Section):
    images: str
    """Folder of the images, below data/raw; `.` is data/raw itself. A .zip or .tar counts as what it holds, unpacked
    where it lies. An image that no annotation file names is used for pretraining only."""
    annotations: Expression
    """Regular expression that the whole path of an annotation file below data/raw matches, such as
    `annotations/instances_.*\\.json`."""


class CocoParams(_Annotated):
    """Polygons and runs of pixels in JSON files. A file with train, val or test in its name, or in that of its folder,
    names an official split. What no object covers is background; of two objects the smaller lies on top; crowds are
    drawn as their class.
    """

    layout: Literal["coco"]


class CocoPanopticParams(_Annotated):
    """A PNG of segment numbers for each image, and JSON files that say which class a segment has; 0 is not
    annotated. Official splits as of layout `coco`.
    """

    layout: Literal["coco_panoptic"]
    masks: str
    """Folder of the PNG files, below data/raw."""


class _Drawn(_Annotated):
    line_width_px: Annotated[int, Field(ge=0)]
    """How wide lines are drawn, and points; labelme itself takes 10. 0: they are left out."""


class LabelmeParams(_Drawn):
    """A JSON file for each photo. A later shape lies on those before it; `__ignore__` is not annotated. The labels are
    those of data/raw/labels.txt, a line each, else those that are found, in alphabetical order. Folders named train,
    val or test are official splits.
    """

    layout: Literal["labelme"]


class CvatParams(_Drawn):
    """CVAT for images 1.1: XML with polygons, boxes, ellipses, masks, lines and points, drawn in their z_order. A
    subset named train, val or test is an official split, else the name of the file or of a folder.
    """

    layout: Literal["cvat"]


class CvatMasksParams(_Folders):
    """CVAT's Segmentation mask 1.1: masks in the colours of labelmap.txt, which lies beside their folder; the images
    may lie elsewhere. ImageSets/Segmentation/train.txt, val.txt and test.txt are official splits.
    """

    layout: Literal["cvat_masks"]


SourceParams = (
    FolderParams
    | CityscapesParams
    | VocParams
    | Ade20kParams
    | ClassFoldersParams
    | CamvidParams
    | CocoParams
    | CocoPanopticParams
    | LabelmeParams
    | CvatParams
    | CvatMasksParams
)


class DatasetParams(Section):
    source: Annotated[SourceParams, Field(discriminator="layout")]
    """How the data lie in data/raw."""
    classes: dict[str, ClassValues]
    """Class name -> its value (or values) in the masks: a number, a colour such as '#dc143c', or the name that the
    layout or its annotations give it, as in `vehicle: [car, truck]`. {}: they are named in data/raw/classes.yaml, else
    by the layout."""
    colors: dict[str, list[ColorPart]]
    """Class name -> [red, green, blue] in pictures; a class not listed gets a colour of its own."""
    ignore_values: MaskValues
    """Mask values that say "not annotated": neither trained on nor scored."""
    group_pattern: Pattern | None
    """Regular expression on an image's id (its path without suffix); its first parenthesis is the group (scene,
    patient, video) that may not be on two sides of a split. `(.*)`: every image is a group of its own. null: the
    layout's groups (of camvid the drives), and where it has none every image."""

    labelled_fraction: Annotated[float, Field(gt=0, le=1)]
    """Of the train images with masks, the share whose masks are used; the others count as images without. A smaller
    share is part of a larger one. For finding out what more masks are worth; 1.0 otherwise."""

    @field_validator("colors")
    @classmethod
    def _are_rgb(cls, colors: dict[str, list[int]]) -> dict[str, list[int]]:
        if any(len(color) != 3 for color in colors.values()):
            raise ValueError("three numbers from 0 to 255 for each class")
        return colors
