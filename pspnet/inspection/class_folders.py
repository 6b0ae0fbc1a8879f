"""Recognizes the layout `class_folders`, in which masks, or masks and images, are in folders named after classes."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import PurePosixPath

from pspnet.inspection.facts import MAX_BYTES, MAX_PIXELS
from pspnet.inspection.layout_guess import LayoutGuess, common, parent_of
from pspnet.inspection.listing import Listing
from pspnet.inspection.meaning import MIDDLE
from pspnet.inspection.overlap import are_annotators, are_two_valued
from pspnet.inspection.pairing import MASK_WORDS, words
from pspnet.raw.images import Refused
from pspnet.raw.layouts.pairs import SPLIT_FOLDERS
from pspnet.raw.masks import levels_in

MOST_NAMES = 20  # maximum number of masks to open
MOST_CLASSES = 50
MOST_UNCERTAIN = 20  # if there are more folders, each is more likely a patient or a scene than a class
MASK_ENDINGS = ("_mask", "-mask", "_gt", "_label", "_seg", "_segmentation")
WITHOUT_DEFECTS = {"good", "ok", "normal"}
UNCERTAIN = "The folders could just as well be scenes, patients or batches."

Folders = dict[str, dict[str, str]]  # folder -> stem -> path


def class_folders(listing: Listing) -> LayoutGuess | None:
    folders: Folders = defaultdict(dict)
    for file in listing.images:
        folders[parent_of(file.name)][PurePosixPath(file.name).stem] = file.path
    guesses = [guess for parent in sorted({*map(parent_of, folders)}) for guess in _guesses(parent, folders, listing)]
    return min(guesses, key=lambda guess: not guess.certain, default=None)


def _guesses(parent: str, folders: Folders, listing: Listing) -> Iterator[LayoutGuess]:
    below = [folder for folder in folders if parent_of(folder) == parent and folder != parent]
    classes = sorted(PurePosixPath(folder).name for folder in below)
    if not 1 <= len(classes) <= MOST_CLASSES or {name.lower() for name in classes} <= SPLIT_FOLDERS.keys():
        return
    if words(PurePosixPath(parent).name) & MASK_WORDS:
        if guess := _masks_in_folders(parent, below, classes, folders, listing):
            yield guess
    elif guess := _masks_beside_images(parent, below, classes, folders, listing):
        yield guess


def _masks_in_folders(
    parent: str, below: list[str], classes: list[str], folders: Folders, listing: Listing
) -> LayoutGuess | None:
    """Recognize masks MASKS/CLASS/ID.png with images IMAGES/ID.jpg or IMAGES/CLASS/ID.jpg."""
    stems = {stem for folder in below for stem in folders[folder]}
    suffix = next((end for end in MASK_ENDINGS if all(stem.endswith(end) for stem in stems)), "")
    ids = {stem.removesuffix(suffix) for stem in stems}
    others = [folder for folder in folders if folder not in below]
    flat = [folder for folder in others if {*folders[folder]} >= ids and PurePosixPath(folder).name not in classes]
    without = sorted({PurePosixPath(folder).name for folder in others} & WITHOUT_DEFECTS)
    same = [folder for folder in others if PurePosixPath(folder).name in classes]
    masks = [path for folder in below for path in folders[folder].values()]
    source = {"masks": parent, "mask_suffix": suffix, "mask_threshold": _threshold(listing, masks)}
    reason = f"{parent} contains a folder for each of {', '.join(classes)}"
    if flat and len(classes) > 1:
        found = source | {"images": min(flat), "paired_by": "id", "background_folders": []}
        own = [[folders[folder][stem] for folder in below if stem in folders[folder]] for stem in sorted(stems)]
        certain = not are_annotators(own, listing.raw)
        note = "" if certain else "the masks of an image overlap: several people may have drawn the same thing"
        reason += ", with masks named like the images"
        return LayoutGuess("class_folders", reason, found, note=note, certain=certain, unlikely=not certain)
    if same and without:
        images = common(folder for folder in others if PurePosixPath(folder).name in (*classes, *without))
        found = source | {"images": images, "paired_by": "class_and_id", "background_folders": without}
        reason += f", as do the images, which also have one for {', '.join(without)}"
        return LayoutGuess("class_folders", reason, found)
    images = common(same)
    if {PurePosixPath(folder).name for folder in same} == {*classes} and _are_classes(classes, masks, listing):
        found = source | {"images": images, "paired_by": "class_and_id", "background_folders": []}
        return LayoutGuess("class_folders", f"{reason}, and so does {images}", found, note=UNCERTAIN, certain=False)
    return None


def _masks_beside_images(
    parent: str, below: list[str], classes: list[str], folders: Folders, listing: Listing
) -> LayoutGuess | None:
    """Recognize images CLASS/ID.png next to masks CLASS/ID_mask.png."""
    for suffix in MASK_ENDINGS:
        own = [_ending(folders[folder], suffix) for folder in below]
        masks = [path for masks in own for path in masks]
        if all(own) and _are_classes(classes, masks, listing):
            without = sorted(name for name in classes if name.lower() in WITHOUT_DEFECTS)
            reason = f"images and masks are side by side in a folder for each of {', '.join(classes)}"
            source = {
                "images": parent, "masks": parent, "paired_by": "class_and_id", "mask_suffix": suffix,
                "mask_threshold": _threshold(listing, masks), "background_folders": without,
            }  # fmt: skip
            return LayoutGuess("class_folders", reason, source, note=UNCERTAIN, certain=False)
    return None


def _ending(paths: dict[str, str], suffix: str) -> list[str]:
    return [path for stem, path in paths.items() if stem.endswith(suffix) and stem.removesuffix(suffix) in paths]


def _are_classes(names: list[str], masks: list[str], listing: Listing) -> bool:
    """Whether folders can stand for classes: their names differ by more than a number, and masks have two values."""
    plain = {re.sub(r"[\d_\- ]", "", name) for name in names} - {""}
    return 2 <= len(names) <= MOST_UNCERTAIN and len(plain) == len(names) and are_two_valued(masks, listing.raw)


def _threshold(listing: Listing, masks: list[str]) -> int:
    """The lowest value that counts as bright in these masks."""
    brightest = 0
    for path in masks[:MOST_NAMES]:
        try:
            brightest = max(brightest, int(levels_in(listing.raw.read(path, MAX_BYTES), MAX_PIXELS).max()))
        except Refused:
            continue
    return 1 if brightest == 1 else MIDDLE
