"""Creates the folders and regular expressions for dataset.source that pair images and masks as `Partners` describes."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import PurePosixPath
from typing import NamedTuple

from pspnet.inspection.pairing import DERIVED_WORDS, MASK_WORDS, Folder, Partners, Side, Tail, words

MOST_ELSEWHERE = 10
ANY_NAME = r"(.*)\.\w+"


class Patterns(NamedTuple):
    images: str
    masks: str
    image_names: str
    mask_names: str


def without(side: Side) -> str:
    """The start of a regular expression that excludes the files of this side."""
    literal = re.escape(side.folder[1])
    folder = {"": "", "whole": f"{literal}/", "end": rf"[^/]*{literal}/", "start": f"{literal}[^/]*/"}[side.folder[0]]
    kind, text = side.tail
    name = {
        "suffix": rf"[^/]*{re.escape(text)}\.\w+$",
        "suffix, number or not": rf"[^/]*{re.escape(text)}(?:[_\- .]?\d+)?\.\w+$",
        "suffix and number": rf"[^/]*{re.escape(text)}\d+\.\w+$",
        "prefix": rf"{re.escape(text)}[^/]*$",
        "name": rf"{re.escape(text)}\.\w+$",
    }.get(kind, "")
    between = "(?:.*/)?" if folder and name else ""
    return f"(?!(?:.*/)?{folder}{between}{name})" if folder or name else ""


def patterns_for(partners: Partners, names: list[str], is_mask: Callable[[str], bool]) -> Patterns:
    """Folders and patterns that match the two sides. Images in other folders become unlabeled images."""
    if partners.suffixes:
        image, mask = (rf"(.*){re.escape(suffix)}" for suffix in partners.suffixes)
        root = _common(str(PurePosixPath(name).parent) for name in names if name.endswith(partners.suffixes))
        return Patterns(root or ".", root or ".", image, mask)
    sides = (partners.image, partners.mask)
    # An image and its mask must have the same id, so ids are paths relative to a common folder.
    root = _common(before for side in sides for before in _before(side, names))
    (images, image_names), (masks, mask_names) = (_pattern(side, names, root) for side in sides)
    if image_names == ANY_NAME and images != "." and (elsewhere := _elsewhere(names, images, masks, is_mask)):
        folders = "|".join(f"{re.escape(folder)}/" for folder in elsewhere)
        return Patterns(".", masks, f"(?:{re.escape(images)}/|(?={folders})){ANY_NAME}", mask_names)
    return Patterns(images, masks, image_names, mask_names)


def _elsewhere(names: list[str], images: str, masks: str, is_mask: Callable[[str], bool]) -> list[str]:
    """Folders with other images, except those whose names or first files suggest masks or derived pictures."""
    by_parent: dict[PurePosixPath, list[str]] = defaultdict(list)
    for name in names:
        by_parent[PurePosixPath(name).parent].append(name)
    further = [parent for parent in by_parent if not any(parent.is_relative_to(folder) for folder in (images, masks))]
    unnamed = sorted(str(parent) for parent in further if not words(str(parent)) & (MASK_WORDS | DERIVED_WORDS))
    folders = (
        folder for folder in unnamed if folder != "." and not all(map(is_mask, by_parent[PurePosixPath(folder)][:3]))
    )
    return list(islice(folders, MOST_ELSEWHERE))


def _before(side: Side, names: Iterable[str]) -> Iterator[str]:
    """The folders above the folder that this side removes."""
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
        if kind == "whole":
            if parents[place : place + text.count("/") + 1] == tuple(text.split("/")):
                return place
        elif part != text and (part.endswith(text) if kind == "end" else part.startswith(text)):
            return place
    return None


def _has_tail(tail: Tail, stem: str) -> bool:
    kind, text = tail
    literal = re.escape(text)
    stems = {
        "suffix": f".*{literal}",
        "suffix, number or not": rf".+{literal}(?:[_\- .]?\d+)?",
        "prefix": f"{literal}.*",
        "number": rf".+{literal}\d+",
        "suffix and number": rf".+{literal}\d+",
        "rest": f".*{literal}.*",
        "name": literal,
    }
    return bool(re.fullmatch(stems.get(kind, ".*"), stem))


def _pattern(side: Side, names: list[str], root: str) -> tuple[str, str]:
    kind, text = side.folder
    kept, literal = _tail(side.tail), re.escape(text)
    inner = kept
    if side.tail[0] in ("folder", "name"):
        inner = ("(?:(.*)/)?" if _is_deep(side, names) else "") + kept.removeprefix("(.*)/")
    before = {*_before(side, names)}
    deeper = "(.*)/" if root not in before else "(?:(.*)/)?"
    match kind:
        case "whole" if before == {root}:
            return _joined(root, text), kept
        case "whole":
            return root or ".", f"{deeper}{literal}/{inner}"
        case "end":
            return root or ".", f"(.*){literal}/{kept}"
        case "start":
            return root or ".", (deeper if before != {root} else "") + literal + kept
    return root or ".", kept


def _is_deep(side: Side, names: Iterable[str]) -> bool:
    """Whether there are folders below the folder that this side removes."""
    for name in names:
        parents = PurePosixPath(name).parts[:-1]
        place = _place(side.folder, parents)
        inner = place is not None and len(parents) > place + 1 + side.folder[1].count("/")
        if inner and _has_tail(side.tail, PurePosixPath(name).stem):
            return True
    return False


def _tail(tail: Tail) -> str:
    kind, text = tail
    literal = re.escape(text)
    return {
        "": ANY_NAME,
        "suffix": rf"(.*){literal}\.\w+",
        "suffix, number or not": rf"(.*){literal}(?:[_\- .]?\d+)?\.\w+",
        "prefix": rf"(?:(.*)/)?{literal}([^/]*)\.\w+",
        "number": rf"(.*?){literal}\d+\.\w+",
        "suffix and number": rf"(.*?){literal}\d+\.\w+",
        "rest": rf"(?:(.*)/)?([^/{text}]+){text}[^/]*\.\w+",
        "name": rf"(.*)/{literal}\.\w+",
        "folder": r"(.*)/[^/]+\.\w+",
    }[kind]


def _common(folders: Iterable[str]) -> str:
    """The deepest folder that contains all of these folders; '' is the root."""
    several = [PurePosixPath(folder).parts for folder in {*folders}]
    parts = []
    for level in zip(*several, strict=False):
        if len({*level}) > 1:
            break
        parts.append(level[0])
    return "/".join(parts)


def _joined(*parts: str) -> str:
    return "/".join(part for part in parts if part)
