"""Which files are images, which are their masks, and by what in their names they belong together."""

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from pspnet.dataset.adapters.pairs import SPLIT_FOLDERS

MASK_WORDS = {
    "mask", "masks", "gt", "gts", "groundtruth", "truth", "label", "labels", "lbl", "seg", "segs", "segm",
    "segmentation", "segmentations", "segmented", "annotation", "annotations", "annot", "annots", "anno", "ann",
    "matte", "mattes", "manual", "target", "targets",
}  # fmt: skip
IMAGE_WORDS = {
    "image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "input", "inputs", "rgb", "frame",
    "frames", "original", "originals", "jpegimages", "sat", "scan", "scans", "raw", "tile", "tiles",
}  # fmt: skip
DERIVED_WORDS = {  # of pictures that are made from the others
    "vis", "viz", "visualization", "visualizations", "visualisation", "visualisations", "overlay", "overlays", "pred",
    "preds", "prediction", "predictions", "preview", "previews", "thumb", "thumbs", "thumbnail", "thumbnails",
    "color", "colors", "colour", "colours", "contour", "contours", "depth", "disparity", "object", "objects", "parts",
}  # fmt: skip
GLUED = sorted(word for word in MASK_WORDS | IMAGE_WORDS if len(word) >= 5)  # found in `trainannot` too
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
MOST_OPERATIONS = 30  # of each kind that are tried
MOST_KEYS = 4000
MOST_CANDIDATES = 20
MOST_ELSEWHERE = 10
FEWEST_BY_LOOKS = 0.25  # of the files, where no word says what they are
ANY_NAME = r"(.*)\.\w+"
SMALL = 200  # names: each is looked at, however rare what it holds

Folder = tuple[Literal["", "whole", "end", "start"], str]
Tail = tuple[Literal["", "suffix", "prefix", "number", "suffix and number", "folder"], str]


class Side(NamedTuple):
    """What is taken out of the path of a file (its suffix apart) for what it has in common with its partner."""

    folder: Folder  # a folder of this name, or what ends or starts the name of one
    tail: Tail  # of the file's own name


class Partners(NamedTuple):
    image: Side
    mask: Side
    suffixes: tuple[str, str] | None  # where nothing else tells them apart
    images: int  # that have a mask, of those looked at
    several: bool  # masks of one image


class Patterns(NamedTuple):
    images: str
    masks: str
    image_names: str
    mask_names: str


def words(text: str) -> set[str]:
    return {word.lower() for word in WORD.findall(text)}


def is_derived(name: str) -> bool:
    return bool(words(str(PurePosixPath(name).parent)) & DERIVED_WORDS)


@dataclass
class _Match:
    example: tuple[str, str]  # an image and its mask
    images: int = 0
    several: int = 0  # of these have more than one mask


def candidates(names: list[str], is_mask: Callable[[str], bool]) -> Iterator[Partners]:
    """The most promising first. `is_mask` looks into a file: it is asked where words do not tell which is which."""
    step = len(names) * 4 // MOST_KEYS + 1
    matches = _matches(names, step)
    ranked = sorted(matches, key=lambda pair: (-matches[pair].images * _weight(pair), pair))
    best = matches[ranked[0]].images * _weight(ranked[0]) if ranked else 0
    by_suffix = _by_suffix(names, is_mask)
    if by_suffix and by_suffix.images > best:
        yield by_suffix
    for image, mask in ranked[:MOST_CANDIDATES]:
        match = matches[image, mask]
        one, other = match.example
        is_image = (_words(image) - _words(mask)) & IMAGE_WORDS or not is_mask(one)
        share = match.images * step / len(names)  # both together: up to a half
        if _words(mask) & MASK_WORDS or (share >= FEWEST_BY_LOOKS and is_image and is_mask(other)):
            yield Partners(image, mask, None, match.images, match.several > 0)


def _matches(names: list[str], step: int) -> dict[tuple[Side, Side], _Match]:
    """By what is taken out of images and of masks: how often that leaves the same, in one of `step` cases."""
    keyed: dict[str, dict[Side, list[int]]] = defaultdict(dict)
    operations = _Operations(names)
    for place, name in enumerate(names):
        for side, key in operations.of(name):
            if zlib.crc32(key.encode()) % step == 0:
                keyed[key].setdefault(side, []).append(place)
    matches: dict[tuple[Side, Side], _Match] = {}
    for sides in keyed.values():
        for image, own in sides.items():
            if len(own) > 1:
                continue
            for mask, others in sides.items():
                if mask != image and own[0] not in others and not _are_splits(image, mask):
                    match = matches.setdefault((image, mask), _Match((names[own[0]], names[others[0]])))
                    match.images += 1
                    match.several += len(others) > 1
    return matches


def _are_splits(one: Side, other: Side) -> bool:
    return {one.folder[1].lower(), other.folder[1].lower()} <= SPLIT_FOLDERS.keys()


class _Operations:
    """What may be taken out of these names: what stands in many of them, but not in all."""

    def __init__(self, names: list[str]) -> None:
        folders: Counter[str] = Counter()
        suffixes: Counter[str] = Counter()
        prefixes: Counter[str] = Counter()
        for name in names:
            path = PurePosixPath(name)
            folders.update({*path.parts[:-1]})
            suffixes.update(_suffixes(path.stem))
            prefixes.update(_prefixes(path.stem))
        least = 1 if len(names) <= SMALL else max(2, len(names) // 200)
        self._folders = _frequent(folders, least, len(names))
        self._suffixes = _frequent(suffixes, least, len(names) + 1)
        self._prefixes = _frequent(prefixes, least, len(names) + 1)

    def of(self, name: str) -> Iterator[tuple[Side, str]]:
        path = PurePosixPath(name)
        stem, parents = path.stem, path.parts[:-1]
        tails = list(self._tails(stem))
        for folder, rest in self._without_folder(parents):
            for tail, rest_of_stem in tails:
                key = "/".join((*rest, rest_of_stem) if rest_of_stem else rest)
                if key and (folder[0] or tail[0] != "folder"):
                    yield Side(folder, tail), key

    def _without_folder(self, parents: tuple[str, ...]) -> Iterator[tuple[Folder, tuple[str, ...]]]:
        yield ("", ""), parents
        for place, part in enumerate(parents):
            before, after = parents[:place], parents[place + 1 :]
            if part in self._folders and part not in after:
                yield ("whole", part), (*before, *after)
            for kind, text, rest in _affixes(part):
                yield (kind, text), (*before, rest, *after)

    def _tails(self, stem: str) -> Iterator[tuple[Tail, str]]:
        yield ("", ""), stem
        yield ("folder", ""), ""
        for suffix in _suffixes(stem):
            if suffix in self._suffixes:
                yield ("suffix", suffix), stem.removesuffix(suffix)
        for prefix in _prefixes(stem):
            if prefix in self._prefixes:
                yield ("prefix", prefix), stem.removeprefix(prefix)
        if match := re.fullmatch(r"(.+?)([_\- .]?)\d+", stem):
            yield ("number", match[2]), match[1]
            for suffix in _suffixes(match[1]):
                if suffix in self._suffixes:
                    yield ("suffix and number", suffix + match[2]), match[1].removesuffix(suffix)


def _suffixes(stem: str) -> list[str]:
    """`_mask` of `x_mask`, and of `x_mask_1` too."""
    match = re.fullmatch(r".+?([_\- .](?=[^_\- .]*[^\W\d_])[^_\- .]+?)(?:[_\- .]?\d+)?", stem)
    return [match[1]] if match else []


def _prefixes(stem: str) -> list[str]:
    match = re.fullmatch(r"([^\W\d_]+[_\- .]?).+", stem)
    return [match[1]] if match else []


def _affixes(part: str) -> Iterator[tuple[Literal["end", "start"], str, str]]:
    """`_images` of `train_images`, `labels` of `labelsTr`: only what is a word for one of the two."""
    known = MASK_WORDS | IMAGE_WORDS
    if (match := re.fullmatch(r"(.+?)([_\- .]([A-Za-z]+))", part)) and match[3].lower() in known:
        yield "end", match[2], match[1]
    if (match := re.fullmatch(r"(([A-Za-z]+)[_\- .])(.+)", part)) and match[2].lower() in known:
        yield "start", match[1], match[3]
    for word in GLUED:
        if part.lower().endswith(word) and part[-len(word) - 1 : -len(word)].isalnum():
            yield "end", part[-len(word) :], part[: -len(word)]
        if part.lower().startswith(word) and part[len(word) : len(word) + 1].isupper():
            yield "start", part[: len(word)], part[len(word) :]


def _frequent(counts: Counter[str], least: int, most: int) -> set[str]:
    kept = [(text, count) for text, count in counts.most_common(MOST_OPERATIONS * 4) if least <= count < most]
    known = MASK_WORDS | IMAGE_WORDS
    kept.sort(key=lambda item: (not words(item[0]) & known, -item[1], item[0]))
    return {text for text, _ in kept[:MOST_OPERATIONS]}


def _weight(pair: tuple[Side, Side]) -> float:
    """How far the words speak for it; of equals the one that takes out less."""
    image, mask = pair
    in_image, in_mask = _words(image), _words(mask)
    weight = 1.0 if in_mask & MASK_WORDS else 0.5
    if in_image & MASK_WORDS or (in_mask & IMAGE_WORDS and not in_mask & MASK_WORDS):
        weight *= 0.2
    if (in_image | in_mask) & DERIVED_WORDS:
        weight *= 0.2
    for side in pair:
        weight *= 0.98 if side.folder[0] else 1
        weight *= {"": 1, "suffix": 0.98, "prefix": 0.97, "suffix and number": 0.9, "number": 0.85, "folder": 0.8}[
            side.tail[0]
        ]
    return weight


def _words(side: Side) -> set[str]:
    return words(side.folder[1]) | words(side.tail[1])


def _by_suffix(names: list[str], is_mask: Callable[[str], bool]) -> Partners | None:
    """a.jpg and a.png side by side."""
    by_stem: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_stem[str(PurePosixPath(name).with_suffix(""))].append(name)
    twos = [sorted(two, key=lambda name: PurePosixPath(name).suffix) for two in by_stem.values() if len(two) == 2]
    kinds = Counter((PurePosixPath(one).suffix, PurePosixPath(other).suffix) for one, other in twos)
    for (one, other), count in kinds.most_common(1):
        first = next(two for two in twos if (two[0].endswith(one) and two[1].endswith(other)))
        plain = Side(("", ""), ("", ""))
        if is_mask(first[1]) and not is_mask(first[0]):
            return Partners(plain, plain, (one, other), count, False)
        if is_mask(first[0]) and not is_mask(first[1]):
            return Partners(plain, plain, (other, one), count, False)
    return None


def patterns(partners: Partners, names: list[str]) -> Patterns:
    """Folders and regular expressions that say the same as the two sides; images that lie elsewhere are unlabelled."""
    if partners.suffixes:
        image, mask = (rf"(.*){re.escape(suffix)}" for suffix in partners.suffixes)
        root = _common(str(PurePosixPath(name).parent) for name in names if name.endswith(partners.suffixes))
        return Patterns(root, root, image, mask)
    sides = (partners.image, partners.mask)
    # Ids have to be the same on both sides: paths below one folder.
    root = _common(before for side in sides for before in _before(side, names))
    (images, image_names), (masks, mask_names) = (_pattern(side, names, root) for side in sides)
    if image_names == ANY_NAME and images != "." and (elsewhere := _elsewhere(names, images, masks)):
        folders = "|".join(f"{re.escape(folder)}/" for folder in elsewhere)
        return Patterns(".", masks, f"(?:{re.escape(images)}/|(?={folders})){ANY_NAME}", mask_names)
    return Patterns(images, masks, image_names, mask_names)


def _elsewhere(names: list[str], images: str, masks: str) -> list[str]:
    """Folders of further images, as far as nothing says that they hold masks."""
    parents = {PurePosixPath(name).parent for name in names}
    further = [parent for parent in parents if not any(parent.is_relative_to(folder) for folder in (images, masks))]
    told = [parent for parent in further if not words(str(parent)) & (MASK_WORDS | DERIVED_WORDS)]
    return sorted({str(parent) for parent in told if parent.parts})[:MOST_ELSEWHERE]


def _before(side: Side, names: Iterable[str]) -> Iterator[str]:
    """The folders in which this side begins."""
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
    """The deepest folder that all of them are or lie in; '' is the root."""
    several = [PurePosixPath(folder).parts for folder in {*folders}]
    parts = []
    for level in zip(*several, strict=False):
        if len({*level}) > 1:
            break
        parts.append(level[0])
    return "/".join(parts)


def _joined(*parts: str) -> str:
    return "/".join(part for part in parts if part)
