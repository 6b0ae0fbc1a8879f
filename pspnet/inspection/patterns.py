"""Folders and regular expressions for dataset.source that pair images and masks as found by `partners`."""

import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

from pspnet.inspection.partners import DERIVED_WORDS, MASK_WORDS, Folder, Partners, Side, Tail, words

MOST_ELSEWHERE = 10
ANY_NAME = r"(.*)\.\w+"


class Patterns(NamedTuple):
    images: str
    masks: str
    image_names: str
    mask_names: str


def patterns_for(partners: Partners, names: list[str]) -> Patterns:
    """Folders and patterns that match the two sides; images in other folders become unlabeled."""
    if partners.suffixes:
        image, mask = (rf"(.*){re.escape(suffix)}" for suffix in partners.suffixes)
        root = _common(str(PurePosixPath(name).parent) for name in names if name.endswith(partners.suffixes))
        return Patterns(root, root, image, mask)
    sides = (partners.image, partners.mask)
    # Ids must be equal on both sides, so they are paths below one folder.
    root = _common(before for side in sides for before in _before(side, names))
    (images, image_names), (masks, mask_names) = (_pattern(side, names, root) for side in sides)
    if image_names == ANY_NAME and images != "." and (elsewhere := _elsewhere(names, images, masks)):
        folders = "|".join(f"{re.escape(folder)}/" for folder in elsewhere)
        return Patterns(".", masks, f"(?:{re.escape(images)}/|(?={folders})){ANY_NAME}", mask_names)
    return Patterns(images, masks, image_names, mask_names)


def _elsewhere(names: list[str], images: str, masks: str) -> list[str]:
    """Folders of other images, unless a word says that they hold masks or derived pictures."""
    parents = {PurePosixPath(name).parent for name in names}
    further = [parent for parent in parents if not any(parent.is_relative_to(folder) for folder in (images, masks))]
    images_only = [parent for parent in further if not words(str(parent)) & (MASK_WORDS | DERIVED_WORDS)]
    return sorted({str(parent) for parent in images_only if parent.parts})[:MOST_ELSEWHERE]


def _before(side: Side, names: Iterable[str]) -> Iterator[str]:
    """The folders above the part that this side removes."""
    for name in names:
        parents = PurePosixPath(name).parts[:-1]
        place = _place(side.folder, parents)
        if place is not None and _has_tail(side.tail, PurePosixPath(name).stem):
            yield "/".join(parents[:place])


def _place(folder: Folder, parents: tuple[str, ...]) -> int | None:
    kind, text = folder
    if not kind:
        return len(parents)
    for place in range(len(parents) - 1, -1, -1):
        part = parents[place]
        at_end, at_start = part.endswith(text), part.startswith(text)
        if part == text if kind == "whole" else part != text and (at_end if kind == "end" else at_start):
            return place
    return None


def _has_tail(tail: Tail, stem: str) -> bool:
    kind, text = tail
    match kind:
        case "suffix":
            return stem.endswith(text)
        case "prefix":
            return stem.startswith(text)
        case "number" | "suffix and number":
            return bool(re.fullmatch(rf".+{re.escape(text)}\d+", stem))
    return True


def _pattern(side: Side, names: list[str], root: str) -> tuple[str, str]:
    kind, text = side.folder
    kept, literal = _tail(side.tail), re.escape(text)
    before = {*_before(side, names)}
    deeper = "(.*)/" if root not in before else "(?:(.*)/)?"
    match kind:
        case "whole" if before == {root}:
            return _joined(root, text), kept
        case "whole":
            return root or ".", f"{deeper}{literal}/{kept}"
        case "end":
            return root or ".", f"(.*){literal}/{kept}"
        case "start":
            return root or ".", (deeper if before != {root} else "") + literal + kept
    return root or ".", kept


def _tail(tail: Tail) -> str:
    kind, text = tail
    literal = re.escape(text)
    return {
        "": ANY_NAME,
        "suffix": rf"(.*){literal}\.\w+",
        "prefix": rf"(?:(.*)/)?{literal}([^/]*)\.\w+",
        "number": rf"(.*?){literal}\d+\.\w+",
        "suffix and number": rf"(.*?){literal}\d+\.\w+",
        "folder": r"(.*)/[^/]+\.\w+",
    }[kind]


def _common(folders: Iterable[str]) -> str:
    """The deepest folder that contains all of these; '' is the root."""
    several = [PurePosixPath(folder).parts for folder in {*folders}]
    parts = []
    for level in zip(*several, strict=False):
        if len({*level}) > 1:
            break
        parts.append(level[0])
    return "/".join(parts)


def _joined(*parts: str) -> str:
    return "/".join(part for part in parts if part)
