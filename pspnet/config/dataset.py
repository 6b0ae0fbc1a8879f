"""`dataset`: the layout of data/raw and the meaning of its masks."""

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
                f"a whole number from 0 to {MOST_MASK_VALUE}, a color such as '#dc143c', a label, or several in []"
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
        raise ValueError("a regular expression with a group in parentheses, such as ^(scene[0-9]+)")
    return pattern


Expression = Annotated[str, AfterValidator(_is_expression)]
Pattern = Annotated[Expression, AfterValidator(_has_parenthesis)]


class _Folders(Section):
    images: str
    """Folder of the images, below data/raw; `.` is data/raw itself. A .zip or .tar is read as if unpacked in place."""
    masks: str
    """Folder of the masks, below data/raw; it may be the image folder. Images without a mask are used only for
    pretraining."""


class FolderParams(_Folders):
    """Images and masks, told apart and paired by name."""

    layout: Literal["folder"]
    image_names: Pattern
    """Regular expression that must match the whole path of an image below its folder; its groups, joined by `/`, are
    the image's id. `(.*)\\.\\w+`: the path without suffix. `(.*)/images/(.*)\\.\\w+` maps train/images/1.png to
    train/1."""
    mask_names: Pattern
    """The same for a mask, such as `(.*)_gt\\.png`. The mask belongs to the image with the same id. A path that matches
    both patterns is a mask."""
    mask_kind: Literal["numbers", "colors", "levels", "instances"]
    """What the pixels of a mask contain. `numbers`: a gray value or palette index. `colors`: a color, as in `road:
    '#804080'`. `levels`: 1 from mask_threshold up, 0 below, for masks that were blurred or saved as JPEG. `instances`:
    one file per object, 1 where any file has mask_threshold or more."""
    mask_threshold: Annotated[int, Field(ge=1, le=65535)]
    """See mask_kind; 128 is the middle of the 8-bit range."""


class CityscapesParams(_Folders):
    """leftImg8bit/SPLIT/CITY/*_leftImg8bit.png and gtFine/SPLIT/CITY/*_gtFine_LABELS.png."""

    layout: Literal["cityscapes"]
    labels: Literal["labelIds", "labelTrainIds"]
    """The mask files to read: with the numbers of all 34 labels, or of the 19 used in training."""


class VocParams(_Folders):
    """JPEGImages/*.jpg, SegmentationClass/*.png with the same names, official splits in ImageSets/Segmentation."""

    layout: Literal["voc"]
    splits: str
    """Folder of train.txt, val.txt and test.txt, each a list of names. Without these files, splits are assigned by
    group."""


class Ade20kParams(_Folders):
    """images/training/*.jpg and annotations/training/*.png for scene parsing: 150 classes; 0 means not annotated."""

    layout: Literal["ade20k"]


class ClassFoldersParams(_Folders):
    """One mask per class, bright where the class is, in a folder named after the class. Where two masks are bright, the
    class later in the alphabet wins. Where no mask is bright, the pixel is background. Folders named train, val or test
    are official splits.
    """

    layout: Literal["class_folders"]
    paired_by: Literal["id", "class_and_id"]
    """`id`: MASKS/CLASS/ID.png belongs to IMAGES/ID.jpg. `class_and_id`: the mask belongs to image ID in a folder named
    CLASS anywhere under IMAGES, as in MVTec AD; IMAGES and MASKS may be the same folder."""
    mask_suffix: str
    """The part of a mask's name that follows ID, such as `_mask`. A number may follow it: 1_mask.png and 1_mask_1.png
    are both masks of image 1, so they are merged."""
    mask_threshold: Annotated[int, Field(ge=1, le=65535)]
    """The lowest gray value that counts as bright; 128 is the middle of the 8-bit range."""
    background_folders: list[str]
    """Folders of images that show no class, such as `good`, and are all background. They need no masks."""


class CamvidParams(_Folders):
    """Frames and masks with the same names, or train/ and trainannot/ in the same folder. Masks number the 11 classes
    from 0, and 11 is void. The part of a name before its first `_` is the drive, which is used as the group. Folders
    are official splits.
    """

    layout: Literal["camvid"]


class _Annotated(Section):
    images: str
    """Folder of the images, below data/raw; `.` is data/raw itself. A .zip or .tar counts as its contents, unpacked in
    place. Images not listed in any annotation file are used only for pretraining."""
    annotations: Expression
    """Regular expression that must match the whole path of an annotation file below data/raw, such as
    `annotations/instances_.*\\.json`."""


class CocoParams(_Annotated):
    """Polygons and run lengths in JSON files. A file with train, val or test in its own or its folder's name is an
    official split. Pixels not covered by any object are background. The smaller of two objects is on top, and crowds
    are drawn as their class.
    """

    layout: Literal["coco"]


class CocoPanopticParams(_Annotated):
    """One PNG of segment numbers per image, and JSON files with the class of each segment; 0 means not annotated.
    Official splits are recognized as in the `coco` layout.
    """

    layout: Literal["coco_panoptic"]
    masks: str
    """Folder of the PNG files, below data/raw."""


class _Drawn(_Annotated):
    line_width_px: Annotated[int, Field(ge=0)]
    """Width of drawn lines and points; labelme itself uses 10. 0 leaves them out."""


class LabelmeParams(_Drawn):
    """One JSON file per photo. Later shapes cover earlier ones; `__ignore__` means not annotated. data/raw/labels.txt
    lists the labels, one per line. Without this file, the labels found are used in alphabetical order. Folders named
    train, val or test are official splits.
    """

    layout: Literal["labelme"]


class CvatParams(_Drawn):
    """CVAT for images 1.1: XML with polygons, boxes, ellipses, masks, lines and points, drawn in their z_order. A
    subset named train, val or test is an official split. If there are no subsets, files and folders with these names
    are.
    """

    layout: Literal["cvat"]


class CvatMasksParams(_Folders):
    """CVAT's Segmentation mask 1.1: masks in the colors of labelmap.txt, which is next to their folder. The images can
    be elsewhere. ImageSets/Segmentation/train.txt, val.txt and test.txt are official splits.
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
    """How data/raw is laid out."""
    classes: dict[str, ClassValues]
    """Class name -> its value (or values) in the masks: a number, a color such as '#dc143c', or the name that the
    layout or its annotations give it, as in `vehicle: [car, truck]`. {}: data/raw/classes.yaml defines the classes or,
    without that file, the layout does."""
    colors: dict[str, list[ColorPart]]
    """Class name -> [red, green, blue] in pictures; other classes get distinct colors."""
    ignore_values: MaskValues
    """Mask values that mean "not annotated": these pixels are ignored in training and scoring."""
    group_pattern: Pattern | None
    """Regular expression, searched for anywhere in an image's id (its path without suffix); `^` stands for the start.
    Its first group is the scene, patient or video that stays in one split. `(.*)`: each image is its own group. null:
    the layout's groups (camvid's drives), or one group per image if the layout has none."""

    labeled_fraction: Annotated[float, Field(gt=0, le=1)]
    """Share of the masks in train that are used; images whose masks are not used count as images without masks. A
    smaller share is a subset of every larger one. Lower it only to measure how much additional masks help."""

    @field_validator("colors")
    @classmethod
    def _are_rgb(cls, colors: dict[str, list[int]]) -> dict[str, list[int]]:
        if any(len(color) != 3 for color in colors.values()):
            raise ValueError("three numbers from 0 to 255 for each class")
        return colors
