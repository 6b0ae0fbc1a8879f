"""Which layout a folder seems to be: a small function for each, which looks at names and at what is written in them."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from pspnet.dataset.adapters.pairs import SPLIT_FOLDERS
from pspnet.dataset.adapters.voc import OWN_NAMES
from pspnet.dataset.images import Refused
from pspnet.dataset.inspection.listing import Listing
from pspnet.dataset.inspection.looking import MAX_BYTES, MAX_PIXELS
from pspnet.dataset.inspection.meaning import MIDDLE
from pspnet.dataset.inspection.naming import DERIVED_WORDS, MASK_WORDS, words
from pspnet.dataset.masks import levels_in
from pspnet.dataset.raw import RawFile

MOST_TEXTS = 50  # that are looked into
MOST_NAMES = 20  # of images in a text
LABELMES_OWN_WIDTH_PX = 10  # of lines and points
CVATS_XML = re.compile(r"<annotations>\s*<version>.*<image\s", re.DOTALL)
MOST_CLASSES = 50
MASK_ENDINGS = ("_mask", "-mask", "_gt", "_label", "_seg")
WITHOUT_DEFECTS = {"good", "ok", "normal"}


class Recognised(NamedTuple):
    layout: str
    reason: str
    source: dict[str, Any]  # what is known of it, by the names of the fields of dataset.source
    obstacle: str = ""  # why it cannot be read as it lies there
    note: str = ""  # what would make more of it


def recognised(listing: Listing) -> Iterator[Recognised]:
    """Every layout with a signature of its own that the folder shows, the surest first."""
    for recognise in RECOGNISERS.values():
        if found := recognise(listing):
            yield found


def cityscapes(listing: Listing) -> Recognised | None:
    split = r"(?:(.+)/)?(?:train|val|test|train_extra)/[^/]+/[^/]+"
    images = _first_groups(listing, split + r"_leftImg8bit\.\w+")
    if not images:
        return None
    source = {"images": images[0], "masks": "", "labels": "labelIds"}
    for labels in ("labelIds", "labelTrainIds"):
        if masks := _first_groups(listing, split + rf"_gtFine_{labels}\.png"):
            reason = f"names that end in _leftImg8bit and _gtFine_{labels}.png, in folders of cities"
            beside = [folder for folder in images if _parent_of(folder) == _parent_of(masks[0])]
            found = {"images": (beside or images)[0], "masks": masks[0], "labels": labels}
            return Recognised("cityscapes", reason, found)
    obstacle = (
        "there is no *_gtFine_labelIds.png and no *_gtFine_labelTrainIds.png. "
        "Download gtFine, or make them of the polygons with createTrainIdLabelImgs.py of cityscapesscripts."
    )
    return Recognised("cityscapes", "names that end in _leftImg8bit, in folders of cities", source, obstacle)


def cvat(listing: Listing) -> Recognised | None:
    files = [file for file in _texts(listing, ".xml") if CVATS_XML.search(listing.ends(file))]
    if not files:
        return None
    folder = _parent(files[0])
    images = _below(folder, "images") if _any_below(listing, _below(folder, "images")) else folder
    source = {"images": images, "annotations": _any_of(files), "line_width_px": 0}
    return Recognised("cvat", f"{files[0].name} begins as CVAT's XML for images does", source)


def cvat_masks(listing: Listing) -> Recognised | None:
    for file in _texts(listing, "labelmap.txt"):
        if listing.ends(file).startswith("# label:color_rgb"):
            root = _parent(file)
            masks = _below(root, "SegmentationClass")
            ids = {PurePosixPath(one.name).stem for one in listing.images if _parent(one) == masks}
            exported = [_below(root, folder) for folder in ("SegmentationClass", "SegmentationObject")]
            images = (one for one in listing.images if PurePosixPath(one.name).stem in ids)
            folders = [_parent(one) for one in images if _parent(one) not in exported]
            reason = f"{file.name} with a colour for each label, as CVAT exports segmentation masks"
            obstacle = "" if folders else "the images of the masks are not there: CVAT exports them when asked to"
            return Recognised("cvat_masks", reason, {"images": _common(folders), "masks": masks}, obstacle)
    return None


def voc(listing: Listing) -> Recognised | None:
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
    names = _below(root, OWN_NAMES)
    hidden = root != "." and any(file.name == names for file in listing.others)
    note = (
        f"{names} names the classes, but counts only at the top of the raw data: use {root} as that" if hidden else ""
    )
    return Recognised("voc", "folders JPEGImages and SegmentationClass", source, note=note)


def ade20k(listing: Listing) -> Recognised | None:
    images = _first_groups(listing, r"(?:(.+)/)?(?:(?:training|validation)/)?ADE_\w+\.jpg")
    for masks in _first_groups(listing, r"(?:(.+)/)?(?:(?:training|validation)/)?ADE_\w+\.png"):
        if images and not words(masks) & DERIVED_WORDS:
            return Recognised("ade20k", "names that begin with ADE_", {"images": images[0], "masks": masks})
    if all(_first_groups(listing, rf"(?:(.+)/)?[^/]+_{kind}\.png") for kind in (r"parts_\d+", "seg")):
        obstacle = "this is the full release, with parts and instances. Take the one of scene parsing: SceneParse150."
        return Recognised("ade20k", "names that end in _seg.png and _parts_1.png", {}, obstacle)
    return None


def camvid(listing: Listing) -> Recognised | None:
    """Its drives have names that no other set has."""
    drive = r"(?:0001TP|0006R0|0016E5|Seq05VD)_f?\d+"
    folders = _first_groups(listing, rf"(?:(.+?)/)?(?:(?:train|val|test)/)?{drive}(?:_L)?\.\w+")
    masks = [folder for folder in folders if words(folder) & MASK_WORDS]
    images = [folder for folder in folders if folder not in masks]
    if not images or not masks:
        return None
    source = {"images": images[0], "masks": masks[0]}
    return Recognised("camvid", "the names of CamVid's drives, such as 0016E5", source)


def coco(listing: Listing) -> Recognised | None:
    files = _coco_files(listing, '"segmentation"')
    if not files:
        return None
    reason = f"{files[0].name} lists images, categories and objects with their outlines"
    source = {"images": _images_of(listing, files), "annotations": _any_of(files)}
    return Recognised("coco", reason, source)


def coco_panoptic(listing: Listing) -> Recognised | None:
    files = _coco_files(listing, '"segments_info"')
    if not files:
        return None
    first = files[0]
    folder = _below(_parent(first), PurePosixPath(first.name).stem)
    masks = folder if _any_below(listing, folder) else _parent(first)
    reason = f"{first.name} lists images, categories and panoptic segments"
    source = {"images": _images_of(listing, files), "masks": masks, "annotations": _any_of(files)}
    return Recognised("coco_panoptic", reason, source)


def _coco_files(listing: Listing, key: str) -> list[RawFile]:
    needed = ('"images"', '"annotations"', '"categories"', key)
    return [file for file in _texts(listing, ".json") if all(word in listing.ends(file) for word in needed)]


def _any_of(files: Sequence[RawFile]) -> str:
    """A regular expression that just these match."""
    return "|".join(re.escape(file.name) for file in files)


def _images_of(listing: Listing, files: Sequence[RawFile]) -> str:
    """The folder in which the images lie that COCO files list."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for image in listing.images:
        by_name[PurePosixPath(image.name).name].append(image.name)
    folders = []
    for file in files:
        for name in _listed_images(listing, file)[:MOST_NAMES]:
            same = by_name[PurePosixPath(name).name]
            folders += [_parent_of(path) for path in same if PurePosixPath(path).match(name)][:1]
    return _common(folders)


def _listed_images(listing: Listing, file: RawFile) -> list[str]:
    try:
        return [str(image["file_name"]) for image in json.loads(listing.text(file))["images"]]
    except (ValueError, LookupError, TypeError, RecursionError):  # of a large file only the ends are at hand
        return re.findall(r'"file_name"\s*:\s*"([^"]+)"', listing.ends(file))


def labelme(listing: Listing) -> Recognised | None:
    folders: Counter[str] = Counter()
    for file in _texts(listing, ".json"):
        text = listing.ends(file)
        if '"shapes"' in text and '"imagePath"' in text:
            folders[_parent(file)] += 1
    if not folders:
        return None
    folder = _common(folders)
    files = r".*\.json" if folder == "." else rf"{re.escape(folder)}/.*\.json"
    source = {"images": folder, "annotations": files, "line_width_px": LABELMES_OWN_WIDTH_PX}
    return Recognised("labelme", "a JSON with `shapes` and `imagePath` for each image", source)


def class_folders(listing: Listing) -> Recognised | None:
    """Below the folder of masks one for each class; images of the same names in one folder, or in folders of classes
    too, of which one is without any.
    """
    folders: dict[str, set[str]] = defaultdict(set)
    for file in listing.images:
        folders[_parent(file)].add(PurePosixPath(file.name).stem)
    for masks in sorted({_parent_of(folder) for folder in folders}):
        below = [folder for folder in folders if _parent_of(folder) == masks]
        classes = sorted(PurePosixPath(folder).name for folder in below)
        known = words(PurePosixPath(masks).name) & MASK_WORDS and 1 <= len(classes) <= MOST_CLASSES
        if not known or {name.lower() for name in classes} <= SPLIT_FOLDERS.keys():
            continue
        stems = {stem for folder in below for stem in folders[folder]}
        suffix = next((end for end in MASK_ENDINGS if end and all(stem.endswith(end) for stem in stems)), "")
        ids = {stem.removesuffix(suffix) for stem in stems}
        others = [folder for folder in folders if folder not in below]
        flat = [folder for folder in others if folders[folder] >= ids and PurePosixPath(folder).name not in classes]
        without = sorted({PurePosixPath(folder).name for folder in others} & WITHOUT_DEFECTS)
        same = [folder for folder in others if PurePosixPath(folder).name in classes]
        source = {"masks": masks, "mask_suffix": suffix, "mask_threshold": _threshold(listing, masks)}
        reason = f"{masks} holds a folder for each of {', '.join(classes)}"
        if flat and len(classes) > 1:
            found = {"images": min(flat), "paired_by": "id", "background_folders": []}
            return Recognised("class_folders", f"{reason}, with the names of the images", source | found)
        if same and without:
            images = _common(folder for folder in others if PurePosixPath(folder).name in (*classes, *without))
            found = {"images": images, "paired_by": "class_and_id", "background_folders": without}
            reason += f", as for the images, and of these one for {', '.join(without)}"
            return Recognised("class_folders", reason, source | found)
    return None


def _threshold(listing: Listing, masks: str) -> int:
    """From which value on the masks are bright."""
    some = [file.path for file in listing.images if PurePosixPath(file.name).is_relative_to(masks)][:MOST_NAMES]
    brightest = 0
    for path in some:
        try:
            brightest = max(brightest, int(levels_in(listing.raw.read(path, MAX_BYTES), MAX_PIXELS).max()))
        except Refused:
            continue
    return 1 if brightest == 1 else MIDDLE


RECOGNISERS: dict[str, Callable[[Listing], Recognised | None]] = {
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
    """What the first parenthesis matches, most frequent first."""
    compiled = re.compile(pattern)
    found = (compiled.fullmatch(file.name) for file in listing.images)
    counts = Counter(match[1] or "." for match in found if match)
    return [text for text, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def _texts(listing: Listing, suffix: str) -> list[RawFile]:
    """Those nearest to the top, and of large sets some only."""
    files = sorted(listing.ending(suffix), key=lambda file: (file.name.count("/"), file.name))
    return files[:MOST_TEXTS]


def _any_below(listing: Listing, folder: str) -> bool:
    return any(PurePosixPath(file.name).is_relative_to(folder) for file in listing.images)


def _below(root: str, folder: str) -> str:
    return str(PurePosixPath(root, folder))


def _parent(file: RawFile) -> str:
    return _parent_of(file.name)


def _parent_of(path: str) -> str:
    return str(PurePosixPath(path).parent)


def _common(folders: Iterable[str]) -> str:
    several = [PurePosixPath(folder).parts for folder in folders]
    same = []
    for level in zip(*several, strict=False):
        if len({*level}) > 1:
            break
        same.append(level[0])
    return str(PurePosixPath(*same))
