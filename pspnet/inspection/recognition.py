"""Recognizes the layout of a folder. Each layout has a small function that looks at file names and contents."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath

from pspnet.inspection.class_folders import class_folders
from pspnet.inspection.facts import MAX_BYTES, MAX_PIXELS
from pspnet.inspection.layout_guess import LayoutGuess, common, parent_of
from pspnet.inspection.listing import Listing
from pspnet.inspection.pairing import DERIVED_WORDS, MASK_WORDS, words
from pspnet.raw.files import RawFile
from pspnet.raw.images import Refused
from pspnet.raw.masks import numbers_in

MOST_TEXTS = 50  # maximum number of text files to open
MOST_NAMES = 20  # maximum number of images to look up or open
LABELME_WIDTH_PX = 10  # width of lines and points, as drawn by labelme
CVATS_XML = re.compile(r"<annotations>\s*<version>.*<image\s", re.DOTALL)


def recognize_layouts(listing: Listing) -> Iterator[LayoutGuess]:
    """Yield every layout whose typical names or contents are found in the folder, most certain first."""
    for recognize in RECOGNIZERS.values():
        if found := recognize(listing):
            yield found


def cityscapes(listing: Listing) -> LayoutGuess | None:
    split = r"(?:(.+)/)?(?:train|val|test|train_extra)/[^/]+/[^/]+"
    images = _first_groups(listing, split + r"_leftImg8bit\.\w+")
    if not images:
        return None
    source = {"images": images[0], "masks": "", "labels": "labelIds"}
    for labels in ("labelIds", "labelTrainIds"):
        if masks := _first_groups(listing, split + rf"_gtFine_{labels}\.png"):
            reason = f"names that end in _leftImg8bit and _gtFine_{labels}.png, in folders of cities"
            beside = [folder for folder in images if parent_of(folder) == parent_of(masks[0])]
            found = {"images": (beside or images)[0], "masks": masks[0], "labels": labels}
            return LayoutGuess("cityscapes", reason, found)
    obstacle = (
        "there is no *_gtFine_labelIds.png and no *_gtFine_labelTrainIds.png. "
        "Download gtFine, or create them from the polygons with createTrainIdLabelImgs.py from cityscapesscripts."
    )
    return LayoutGuess("cityscapes", "names that end in _leftImg8bit, in folders of cities", source, obstacle)


def cvat(listing: Listing) -> LayoutGuess | None:
    files = [file for file in _texts(listing, ".xml") if CVATS_XML.search(listing.ends(file))]
    if not files:
        return None
    folder = _parent(files[0])
    images = _below(folder, "images") if _any_below(listing, _below(folder, "images")) else folder
    source = {"images": images, "annotations": _any_of(files), "line_width_px": 0}
    return LayoutGuess("cvat", f"{files[0].name} starts like CVAT's XML for images", source)


def cvat_masks(listing: Listing) -> LayoutGuess | None:
    for file in _texts(listing, "labelmap.txt"):
        if listing.ends(file).startswith("# label:color_rgb"):
            root = _parent(file)
            masks = _below(root, "SegmentationClass")
            ids = {PurePosixPath(one.name).stem for one in listing.images if _parent(one) == masks}
            exported = [_below(root, folder) for folder in ("SegmentationClass", "SegmentationObject")]
            images = (one for one in listing.images if PurePosixPath(one.name).stem in ids)
            folders = [_parent(one) for one in images if _parent(one) not in exported]
            reason = f"{file.name} has a color for each label, as in CVAT's export of segmentation masks"
            obstacle = "" if folders else "the images of the masks are missing: CVAT exports them if asked to"
            return LayoutGuess("cvat_masks", reason, {"images": common(folders), "masks": masks}, obstacle)
    return None


def voc(listing: Listing) -> LayoutGuess | None:
    roots = _first_groups(listing, r"(?:(.+)/)?SegmentationClass/[^/]+\.png")
    with_images = [root for root in roots if _any_below(listing, _below(root, "JPEGImages"))]
    if not with_images:
        return None
    root = with_images[0]
    source = {
        "images": _below(root, "JPEGImages"),
        "masks": _below(root, "SegmentationClass"),
        "splits": _below(root, "ImageSets/Segmentation"),
    }
    return LayoutGuess("voc", "folders JPEGImages and SegmentationClass", source)


def ade20k(listing: Listing) -> LayoutGuess | None:
    images = _first_groups(listing, r"(?:(.+)/)?(?:(?:training|validation)/)?ADE_\w+\.jpg")
    for masks in _first_groups(listing, r"(?:(.+)/)?(?:(?:training|validation)/)?ADE_\w+\.png"):
        if images and not words(masks) & DERIVED_WORDS:
            return LayoutGuess("ade20k", "names that start with ADE_", {"images": images[0], "masks": masks})
    if all(_first_groups(listing, rf"(?:(.+)/)?[^/]+_{kind}\.png") for kind in (r"parts_\d+", "seg")):
        obstacle = "this is the full release, with parts and instances. Use the one for scene parsing, SceneParse150."
        return LayoutGuess("ade20k", "names that end in _seg.png and _parts_1.png", {}, obstacle)
    return None


def camvid(listing: Listing) -> LayoutGuess | None:
    """Recognize CamVid by the unique names of its drives.

    This layout reads numbers, so data with color masks is left to pairing by name.
    """
    drive = re.compile(r"(?:0001TP|0006R0|0016E5|Seq05VD)_f?\d+(?:_L)?")
    frames = [file for file in listing.images if drive.fullmatch(PurePosixPath(file.name).stem)]
    masks = [file for file in frames if words(_parent(file)) & MASK_WORDS]
    images = [file for file in frames if not words(_parent(file)) & (MASK_WORDS | DERIVED_WORDS)]
    if not images or not masks or not _has_numbers(listing, masks[0]):
        return None
    glued = all(re.fullmatch("(?:train|val|test)annot", PurePosixPath(_parent(file)).name) for file in masks)
    if glued:
        root = common(parent_of(_parent(file)) for file in (*images, *masks))
        folders = {"images": root, "masks": root}
    else:
        folders = {"images": common(map(_parent, images)), "masks": common(map(_parent, masks))}
    return LayoutGuess("camvid", "names of CamVid's drives, such as 0016E5", folders)


def _has_numbers(listing: Listing, mask: RawFile) -> bool:
    try:
        numbers_in(listing.raw.read(mask.path, MAX_BYTES), MAX_PIXELS)
    except Refused:
        return False
    return True


def coco(listing: Listing) -> LayoutGuess | None:
    files = _coco_files(listing, '"segmentation"')
    if not files:
        return None
    reason = f"{files[0].name} lists images, categories and objects with their outlines"
    source = {"images": _images_of(listing, files), "annotations": _any_of(files)}
    return LayoutGuess("coco", reason, source)


def coco_panoptic(listing: Listing) -> LayoutGuess | None:
    files = _coco_files(listing, '"segments_info"')
    if not files:
        return None
    first = files[0]
    folder = _below(_parent(first), PurePosixPath(first.name).stem)
    masks = folder if _any_below(listing, folder) else _parent(first)
    reason = f"{first.name} lists images, categories and panoptic segments"
    source = {"images": _images_of(listing, files), "masks": masks, "annotations": _any_of(files)}
    return LayoutGuess("coco_panoptic", reason, source)


def _coco_files(listing: Listing, key: str) -> list[RawFile]:
    needed = ('"images"', '"annotations"', '"categories"', key)
    return [file for file in _texts(listing, ".json") if all(word in listing.ends(file) for word in needed)]


def _any_of(files: Sequence[RawFile]) -> str:
    """A regular expression that matches exactly these files."""
    return "|".join(re.escape(file.name) for file in files)


def _images_of(listing: Listing, files: Sequence[RawFile]) -> str:
    """The folder that contains the images listed in the COCO files."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for image in listing.images:
        by_name[PurePosixPath(image.name).name].append(image.name)
    folders = []
    for file in files:
        for name in _listed_images(listing, file)[:MOST_NAMES]:
            same = by_name[PurePosixPath(name).name]
            folders += [parent_of(path) for path in same if PurePosixPath(path).match(name)][:1]
    return common(folders)


def _listed_images(listing: Listing, file: RawFile) -> list[str]:
    try:
        return [str(image["file_name"]) for image in json.loads(listing.text(file))["images"]]
    except (
        ValueError,
        LookupError,
        TypeError,
        RecursionError,
    ):  # only the ends of large files are read
        return re.findall(r'"file_name"\s*:\s*"([^"]+)"', listing.ends(file))


def labelme(listing: Listing) -> LayoutGuess | None:
    folders: Counter[str] = Counter()
    for file in _texts(listing, ".json"):
        text = listing.ends(file)
        if '"shapes"' in text and '"imagePath"' in text:
            folders[_parent(file)] += 1
    if not folders:
        return None
    folder = common(folders)
    files = r".*\.json" if folder == "." else rf"{re.escape(folder)}/.*\.json"
    source = {"images": folder, "annotations": files, "line_width_px": LABELME_WIDTH_PX}
    return LayoutGuess("labelme", "a JSON file with `shapes` and `imagePath` for each image", source)


RECOGNIZERS: dict[str, Callable[[Listing], LayoutGuess | None]] = {
    "cityscapes": cityscapes,
    "cvat_masks": cvat_masks,
    "cvat": cvat,
    "voc": voc,
    "camvid": camvid,
    "ade20k": ade20k,
    "coco_panoptic": coco_panoptic,
    "coco": coco,
    "labelme": labelme,
    "class_folders": class_folders,
}


def _first_groups(listing: Listing, pattern: str) -> list[str]:
    """The texts captured by the first group of the pattern, most frequent first."""
    compiled = re.compile(pattern)
    found = (compiled.fullmatch(file.name) for file in listing.images)
    counts = Counter(match[1] or "." for match in found if match)
    return [text for text, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def _texts(listing: Listing, suffix: str) -> list[RawFile]:
    """At most MOST_TEXTS files with the suffix, those nearest the top folder."""
    files = sorted(listing.ending(suffix), key=lambda file: (file.name.count("/"), file.name))
    return files[:MOST_TEXTS]


def _any_below(listing: Listing, folder: str) -> bool:
    return any(PurePosixPath(file.name).is_relative_to(folder) for file in listing.images)


def _below(root: str, folder: str) -> str:
    return str(PurePosixPath(root, folder))


def _parent(file: RawFile) -> str:
    return parent_of(file.name)
