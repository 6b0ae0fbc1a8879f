"""Tells images from masks by words in their names, and finds out which parts of the names match images with masks."""

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from pspnet.raw.layouts.pairs import SPLIT_FOLDERS

MASK_WORDS = {
    "mask", "masks", "gt", "gts", "groundtruth", "truth", "label", "labels", "lbl", "seg", "segs", "segm",
    "segmentation", "segmentations", "segmented", "annotation", "annotations", "annot", "annots", "anno", "ann",
    "matte", "mattes", "manual", "target", "targets",
}  # fmt: skip
IMAGE_WORDS = {
    "image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "input", "inputs", "rgb", "frame",
    "frames", "original", "originals", "jpegimages", "sat", "scan", "scans", "raw", "tile", "tiles",
}  # fmt: skip
DERIVED_WORDS = {  # words for pictures derived from images or masks
    "vis", "viz", "visualization", "visualizations", "visualisation", "visualisations", "overlay", "overlays", "pred",
    "preds", "prediction", "predictions", "preview", "previews", "thumb", "thumbs", "thumbnail", "thumbnails",
    "color", "colors", "colour", "colours", "contour", "contours", "depth", "disparity", "object", "objects", "parts",
}  # fmt: skip
GLUED = sorted(
    word for word in MASK_WORDS | IMAGE_WORDS if len(word) >= 5
)  # also recognized inside words such as `trainannot`
SPLIT_AND_WORD = re.compile(f"(?:{'|'.join(SPLIT_FOLDERS)})({'|'.join(GLUED)})")
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
MOST_OPERATIONS = 30  # maximum number of operations of each kind to try
MOST_KEYS = 4000
MOST_CANDIDATES = 20
FEWEST_BY_LOOKS = 0.25  # minimum share of files that must pair up if no word identifies images or masks
SMALL = 200  # with up to this many names, even parts that occur in a single name are tried

WEIGHTS = {  # the shorter the part that is removed, the higher the score
    "": 1.0, "suffix": 0.98, "suffix, number or not": 0.98, "prefix": 0.97, "name": 0.96, "suffix and number": 0.9,
    "number": 0.85, "folder": 0.8, "rest": 0.7,
}  # fmt: skip

Folder = tuple[Literal["", "whole", "end", "start"], str]
Tail = tuple[
    Literal["", "suffix", "prefix", "number", "suffix and number", "suffix, number or not", "rest", "name", "folder"],
    str,
]


class Side(NamedTuple):
    """What to remove from a file's path, apart from the suffix, to get the part that images share with their masks."""

    folder: Folder  # a folder with this name, or the end or start of a folder's name
    tail: Tail  # a part of the file's own name


class Partners(NamedTuple):
    image: Side
    mask: Side
    suffixes: tuple[str, str] | None  # file suffixes of images and masks, if nothing else distinguishes them
    images: int  # number of images with a mask, among the sampled names
    several: bool  # whether an image can have several masks


def words(text: str) -> set[str]:
    """The words in a name. For `trainannot`, they include `annot`."""
    found = {word.lower() for word in WORD.findall(text)}
    glued = (re.fullmatch(SPLIT_AND_WORD, word) for word in found)
    return found | {match[1] for match in glued if match}


def is_derived(name: str) -> bool:
    return bool(words(str(PurePosixPath(name).parent)) & DERIVED_WORDS)


@dataclass
class _Match:
    example: tuple[str, str]  # an image and its mask
    images: int = 0
    several: int = 0  # number of images with more than one mask


def candidates(names: list[str], is_mask: Callable[[str], bool]) -> Iterator[Partners]:
    """Yield possible pairings, the most promising first.

    `is_mask` opens a file, so it is called only if the words in the names do not decide.
    """
    step = len(names) * 4 // MOST_KEYS + 1
    matches = _matches(names, step)
    ranked = sorted(matches, key=lambda pair: (-matches[pair].images * _weight(pair), pair))
    best = matches[ranked[0]].images * _weight(ranked[0]) if ranked else 0
    by_suffix = _by_suffix(names, is_mask)
    if by_suffix and by_suffix.images > best:
        yield by_suffix
    doubtful = []  # pairings in which a word identifies the masks, but the images look like masks too
    for image, mask in ranked[:MOST_CANDIDATES]:
        match = matches[image, mask]
        one, other = match.example
        is_image = (side_words(image) - side_words(mask)) & IMAGE_WORDS or not is_mask(one)
        share = match.images * step / len(names)  # at most half, because `names` holds both images and masks
        if side_words(mask) & MASK_WORDS or (share >= FEWEST_BY_LOOKS and is_image and is_mask(other)):
            found = Partners(image, mask, None, match.images, match.several > 0)
            if is_image:
                yield _with_further_masks(found, names)
            else:
                doubtful.append(_with_further_masks(found, names))
    yield from doubtful


def _with_further_masks(partners: Partners, names: list[str]) -> Partners:
    """Extend a pairing with `x_mask` so that it also covers `x_mask_1`, the second mask of an image."""
    kind, suffix = partners.mask.tail
    numbered = re.compile(rf"(.+){re.escape(suffix)}[_\- .]?\d+")
    if kind != "suffix" or not any(numbered.fullmatch(PurePosixPath(name).stem) for name in names):
        return partners
    mask = partners.mask._replace(tail=("suffix, number or not", suffix))
    return partners._replace(mask=mask, several=True)


def _matches(names: list[str], step: int) -> dict[tuple[Side, Side], _Match]:
    """(image side, mask side) -> how often removing these parts leaves equal names. Looks at every `step`-th name."""
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
    """The parts of names that may be removed: parts that occur in many of the names, but not in all of them."""

    def __init__(self, names: list[str]) -> None:
        folders: Counter[str] = Counter()
        suffixes: Counter[str] = Counter()
        prefixes: Counter[str] = Counter()
        stems: Counter[str] = Counter()
        for name in names:
            path = PurePosixPath(name)
            folders.update({*path.parts[:-1]})
            suffixes.update(_suffixes(path.stem))
            prefixes.update(_prefixes(path.stem))
            stems.update([path.stem] if path.parts[:-1] and words(path.stem) else [])
        least = 1 if len(names) <= SMALL else max(2, len(names) // 200)
        self._folders = _frequent(folders, least, len(names))
        self._suffixes = _frequent(suffixes, least, len(names) + 1)
        self._prefixes = _frequent(prefixes, least, len(names) + 1)
        self._stems = {stem for stem, count in stems.most_common(MOST_OPERATIONS) if count > max(1, least)}

    def of(self, name: str) -> Iterator[tuple[Side, str]]:
        path = PurePosixPath(name)
        stem, parents = path.stem, path.parts[:-1]
        tails = list(self._tails(stem))
        for folder, rest in self._without_folder(parents):
            for tail, rest_of_stem in tails:
                key = "/".join((*rest, rest_of_stem) if rest_of_stem else rest)
                if key and (folder[0] == "whole" or tail[0] != "folder"):
                    yield Side(folder, tail), key

    def _without_folder(self, parents: tuple[str, ...]) -> Iterator[tuple[Folder, tuple[str, ...]]]:
        yield ("", ""), parents
        for place, part in enumerate(parents):
            before, after = parents[:place], parents[place + 1 :]
            if part in self._folders and part not in after:
                yield ("whole", part), (*before, *after)
                if words(part) & (MASK_WORDS | IMAGE_WORDS) and after and after[0] in self._folders:
                    yield ("whole", f"{part}/{after[0]}"), (*before, *after[1:])
            for kind, text, rest in _affixes(part):
                yield (kind, text), (*before, rest, *after)

    def _tails(self, stem: str) -> Iterator[tuple[Tail, str]]:
        yield ("", ""), stem
        yield ("folder", ""), ""
        if stem in self._stems:
            yield ("name", stem), ""
        if match := re.fullmatch(r"([^_]*\d[^_]*)_.+", stem):
            yield ("rest", "_"), match[1]
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
    """Suffixes to try for a name, such as `_mask` for both `x_mask` and `x_mask_1`."""
    match = re.fullmatch(r".+?([_\- .](?=[^_\- .]*[^\W\d_])[^_\- .]+?)(?:[_\- .]?\d+)?", stem)
    return [match[1]] if match else []


def _prefixes(stem: str) -> list[str]:
    match = re.fullmatch(r"([^\W\d_]+[_\- .]?).+", stem)
    return [match[1]] if match else []


def _affixes(part: str) -> Iterator[tuple[Literal["end", "start"], str, str]]:
    """Words for images or masks at the end or start of `part`: `_images` in `train_images`, `labels` in `labelsTr`."""
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
    """A score for how well the words fit. Among equally good fits, removing a shorter part scores higher."""
    image, mask = pair
    in_image, in_mask = side_words(image), side_words(mask)
    weight = 1.0 if in_mask & MASK_WORDS else 0.5
    weight *= 1.0 if in_image & IMAGE_WORDS else 0.99
    if in_image & MASK_WORDS or (in_mask & IMAGE_WORDS and not in_mask & MASK_WORDS):
        weight *= 0.2
    if (in_image | in_mask) & DERIVED_WORDS:
        weight *= 0.2
    for side in pair:
        weight *= 0.98 if side.folder[0] else 1
        weight *= WEIGHTS[side.tail[0]]
    return weight


def side_words(side: Side) -> set[str]:
    return words(side.folder[1]) | words(side.tail[1])


def _by_suffix(names: list[str], is_mask: Callable[[str], bool]) -> Partners | None:
    """The pairing of files that differ only in their suffix, such as a.jpg and a.png in the same folder."""
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
