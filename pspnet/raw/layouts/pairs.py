"""Images and masks in two folders, told apart and paired by name, as in most layouts."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pspnet.dataset.store.splits import FIRST, Split
from pspnet.errors import Problem, UserError
from pspnet.raw.files import RawFile, RawFiles
from pspnet.raw.layouts.by_id import FilesById, joined
from pspnet.raw.masks import RawMask
from pspnet.raw.problems import located, shortened

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")
OUR_FILES = ("classes.yaml", "splits.csv")  # files of ours that data/raw can contain in any layout
SPLIT_FOLDERS: dict[str, Split] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test",
}  # fmt: skip


class FoundImage(NamedTuple):
    """An image found by a layout, or the problem that makes it unusable."""

    id: str
    image: str
    mask: RawMask | None = None
    split: Split | None = None
    problem: Problem | None = None
    group: str | None = None  # dataset.group_pattern overrides it


@dataclass(frozen=True)
class Naming:
    """Folders, and patterns for the file names in them. A pattern's capture groups, joined by `/`, form the id. An
    image and its masks have the same id.
    """

    images: str
    masks: str
    image_names: str
    mask_names: str
    other_names: str = "(?!)"  # files of the layout that are not read
    several_masks: bool = False


def pairs(
    naming: Naming, raw: RawFiles, mask: Callable[[list[str]], RawMask], split: Callable[[str], Split | None]
) -> Iterator[FoundImage | Problem]:
    """Yield the images with their masks, sorted by id, and a Problem for each unusable file."""
    check_folders(images=naming.images, masks=naming.masks)
    images, masks, problems = _files(naming, raw)
    if not images.count or not masks.count:
        missing = [] if images.count else [_nothing(raw.root, "image", naming.images, naming.image_names)]
        missing += [] if masks.count else [_nothing(raw.root, "mask", naming.masks, naming.mask_names)]
        raise UserError(shortened([*missing, *located(problems, raw.root)]))
    if not any(own_images and own_masks for _, own_images, own_masks in joined(images, masks)):
        raise UserError(_no_pair(naming, images, masks))
    yield from problems
    for name, own_images, own_masks in joined(images, masks):
        if not own_images:
            for path in own_masks:
                fix = f"Add the image {naming.images}/{name} or remove the mask."
                expected = f"an image with id '{name}'"
                yield Problem(path, "is a mask without an image", expected, fix, "mask_without_image")
        elif len(own_images) > 1:
            for path in own_images:
                found = f"has the same id as {', '.join(other for other in own_images if other != path)}"
                problem = Problem(path, found, "one image per id", "Rename or remove one.", "ambiguous")
                yield FoundImage(name, path, problem=problem)
        elif len(own_masks) > 1 and not naming.several_masks:
            found = f"has {len(own_masks)} masks: {', '.join(own_masks)}"
            problem = Problem(own_images[0], found, "one mask", "Remove all but one.", "ambiguous")
            yield FoundImage(name, own_images[0], problem=problem)
        else:
            yield FoundImage(name, own_images[0], mask(own_masks) if own_masks else None, split(name))


def split_by_folder(name: str) -> Split | None:
    """Return the official split given by the first folder of the id."""
    return SPLIT_FOLDERS.get(name.partition("/")[0])


def once_listed(lists: Mapping[Split, tuple[str, Iterable[str]]]) -> tuple[dict[str, Split], list[Problem]]:
    """Return the split of each id in the official lists (path, ids). An id in two lists goes to the first of test, val
    and train.
    """
    listed: dict[str, Split] = {}
    problems = []
    for split in FIRST:
        path, names = lists.get(split, ("", ()))
        for name in names:
            if (other := listed.setdefault(name, split)) != split:
                found = f"lists {name}, which is also in {lists[other][0]}"
                fix = "Remove it from one, or set prepare.problems.contradicting_splits: fix, which takes the latter."
                problems.append(Problem(path, found, "each name in one list", fix, "contradicting_splits"))
    return listed, problems


def check_folders(**folders: str) -> None:
    problems = [
        Problem("params.yaml", f"dataset.source.{key} is '{folder}'", "a folder below the raw data")
        for key, folder in folders.items()
        if PurePosixPath(folder).is_absolute() or ".." in PurePosixPath(folder).parts
    ]
    if problems:
        raise UserError(problems)


def _files(naming: Naming, raw: RawFiles) -> tuple[FilesById, FilesById, list[Problem]]:
    """Return images and masks by id, and a Problem for every other file."""
    images, masks = FilesById(), FilesById()
    problems: list[Problem] = []
    mask_kind = (_prefix(naming.masks), re.compile(naming.mask_names), masks)
    image_kind = (_prefix(naming.images), re.compile(naming.image_names), images)
    inner = PurePosixPath(naming.masks).is_relative_to(naming.images) and naming.masks != naming.images
    others = re.compile(naming.other_names)
    for found in raw.below(naming.images, naming.masks):
        if isinstance(found, Problem):
            problems.append(found)
            continue
        if found.name in OUR_FILES:
            continue
        is_image = found.name.lower().endswith(SUFFIXES)
        only_mask = inner and found.name.startswith(mask_kind[0])
        kinds = [mask_kind] if only_mask else [mask_kind, image_kind]
        if (is_image and any(_take(found, *kind) for kind in kinds)) or others.fullmatch(found.name):
            continue
        if is_image:
            reason = "does not have the name of an image or a mask"
            expected = f"an image named {naming.image_names} or a mask named {naming.mask_names}"
        else:
            reason, expected = "does not have the suffix of an image", " ".join(SUFFIXES)
        fix = "Move it elsewhere, or set prepare.problems.not_an_image: allow."
        problems.append(Problem(found.path, reason, expected, fix, "not_an_image"))
    return images, masks, problems


def _prefix(folder: str) -> str:
    """Return the prefix shared by all names in the folder. It is a string, because creating a Path for each of a
    million files takes as long as reading them.
    """
    path = str(PurePosixPath(folder))
    return "" if path == "." else f"{path}/"


def _take(found: RawFile, prefix: str, names: re.Pattern[str], files: FilesById) -> bool:
    match = names.fullmatch(found.name[len(prefix) :]) if found.name.startswith(prefix) else None
    name = "/".join(filter(None, match.groups())) if match else ""
    if name:
        files.add(name, found.path)
    return bool(name)


def _nothing(root: Path, kind: str, folder: str, names: str) -> Problem:
    key = f"dataset.source.{kind}s"
    if not (root / folder).is_dir():
        fix = f"Create it and put the {kind}s there, or change {key} in params.yaml."
        expected = f"the folder given in {key}, here or in a .zip or .tar"
        return Problem(str(root / folder), "is missing", expected, fix)
    fix = f"Put the {kind}s there, or change dataset.source in params.yaml."
    expected = f"names that match {names} and end in {' '.join(SUFFIXES)}"
    return Problem(str(root / folder), f"has no {kind}", expected, fix)


def _no_pair(naming: Naming, images: FilesById, masks: FilesById) -> Problem:
    image, mask = (next(files.by_id())[1][0] for files in (images, masks))
    return Problem(
        naming.masks,
        f"none of {masks.count:,} masks has the id of an image; one mask is {mask}, one image {image}",
        f"the same text in the parentheses of {naming.image_names} and {naming.mask_names}",
        "Rename the masks, or change the patterns in dataset.source in params.yaml.",
    )
