"""Finds out which images belong together: sequences of frames or slices, and official splits."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pspnet.config.prepare import PrepareParams, ProblemsParams
from pspnet.dataset.store.splits import ANNOTATED, Split
from pspnet.inspection.facts import MAX_BYTES, MAX_PIXELS, stable_sample
from pspnet.inspection.spelling import counted
from pspnet.raw.files import RawFiles
from pspnet.raw.images import Refused, decoded, limited_pillow, to_rgb
from pspnet.raw.layouts.pairs import SPLIT_FOLDERS, FoundImage
from pspnet.raw.sample import RawSample
from pspnet.raw.splitting import assign_splits

Official = Literal["kept", "val_is_test", "ignored"]

EVERY_IMAGE = "(.*)"
MOST_PAIRS = 24  # maximum number of pairs to compare
ALIKE = 0.5  # neighbors look alike if the correlation of their thumbnails is at least this
THUMBNAIL_PX = 32
FEWEST_GROUPS = 8  # with fewer groups, a random split can leave one of the three splits empty
USUAL = PrepareParams.model_construct(  # as in the recipes
    val_share=0.15,
    test_share=0.2,
    split_by="hash",
    split_seed=0,
    tolerated_share=0.01,
    problems=ProblemsParams.model_construct(not_an_image="quarantine"),
)
NUMBER = r"(?:[_\-. ]\d+|(?<!\d)\d+)"  # matches only a whole number, so that the group of 07 is not 0
FAR_FROM_ASKED = 0.5  # a split that misses its share by more than this part of it is remarked on
BLOCK = "consecutive numbers"


class Grouping(NamedTuple):
    pattern: str
    groups: int
    largest: int
    meaning: str

    @property
    def is_block(self) -> bool:
        return self.meaning.endswith(BLOCK)


class Neighbors(NamedTuple):
    """The median correlation between thumbnails of neighboring images, and between thumbnails of images far apart."""

    following: float
    any_two: float
    compared: int

    @property
    def alike(self) -> bool:
        return self.following >= ALIKE and self.following - self.any_two >= 0.15


def groupings(ids: Sequence[str]) -> list[Grouping]:
    """The patterns that put several ids into one group, simplest first."""
    patterns = {
        r"(.*)/[^/]+": "the folder",
        rf"(?:.*/)?([^/]+?){NUMBER}": "the part before the last number",
        r"(?:.*/)?([^/_\-]+)[_\-].*": "the part before the first _ or -",
        rf"(.+?){NUMBER}": "the folder and the part before the last number",
        **{r"(.*\d)" + r"\d" * digits: f"{10**digits} {BLOCK}" for digits in (4, 3, 2, 1)},
    }
    found = []
    for pattern, meaning in patterns.items():
        groups: Counter[str] = Counter()
        for name in ids:
            match = re.fullmatch(pattern, name)
            groups[match[1] if match else ""] += 1
        if "" in groups or not 2 <= len(groups) <= len(ids) / 2:
            continue
        if {group.lower() for group in groups} <= {*SPLIT_FOLDERS}:
            continue
        # `re.match` may stop before the end. The $ makes the pattern match the whole id.
        found.append(Grouping(f"{pattern}$", len(groups), max(groups.values()), meaning))
    return found


def choose_grouping(
    candidates: Iterable[Grouping],
    found: Sequence[FoundImage],
    neighbors: Neighbors | None,
    official: Official,
    asked: PrepareParams = USUAL,
) -> Grouping | None:
    """The first grouping with enough groups to split. Blocks of numbers are chosen only if neighbors look alike."""
    for candidate in candidates:
        if candidate.is_block and not (neighbors and neighbors.alike):
            continue
        if candidate.groups < FEWEST_GROUPS or candidate.largest > len(found) / 2:
            continue
        if all(deal_masks(found, candidate.pattern, official, asked).get(split) for split in ANNOTATED):
            return candidate
    return None


def deal_masks(
    found: Sequence[FoundImage], pattern: str, official: Official, asked: PrepareParams = USUAL
) -> Counter[Split]:
    """The number of masks in each split, as `prepare` would split them. Empty if a group would be divided."""
    prepare = PrepareParams.model_construct(
        val_share=asked.val_share, test_share=asked.test_share, official_splits=official, split_seed=asked.split_seed,
        problems=ProblemsParams.model_construct(contradicting_splits="error"),
    )  # fmt: skip
    samples = []
    for item in found:
        match = re.match(pattern, item.id)
        samples.append(RawSample(item.id, item.image, item.mask, match[1] if match else item.id, item.split))
    split_of, torn = assign_splits(samples, prepare)
    if torn:
        return Counter()
    return Counter(split_of[sample.group] for sample in samples if sample.mask)


def far_from_asked(splits: Counter[Split], asked: PrepareParams) -> str:
    """A description of the splits, if any of them has less than half or more than 1.5 times its requested share."""
    masks = splits.total()
    shares: dict[Split, float] = {"val": asked.val_share, "test": asked.test_share}
    off = any(abs(splits[split] - share * masks) > FAR_FROM_ASKED * share * masks for split, share in shares.items())
    if not off:
        return ""
    shown = [f"{splits[split]:,} into {split} ({share:.0%} requested)" for split, share in shares.items()]
    return f"{splits['train']:,} of {counted(masks, 'mask')} into train, {shown[0]}, {shown[1]}"


def official_splits(found: Sequence[FoundImage]) -> tuple[Official, str] | None:
    """If the layout has splits: the value for prepare.official_splits, and the reason for it."""
    masks = Counter(item.split for item in found if item.mask and item.split)
    if not masks:
        return None
    shown = ", ".join(f"{counted(count, 'mask')} in {split}" for split, count in sorted(masks.items()))
    if {"train", "val", "test"} <= masks.keys():
        return "kept", shown
    if {"train", "val"} <= masks.keys():
        return "val_is_test", f"{shown}, none in test: val becomes test, and part of train becomes val"
    return "ignored", f"{shown}: too few splits to keep"


def compare_neighbors(found: Sequence[FoundImage], files: RawFiles) -> Neighbors | None:
    """Compare numbered images with the next image and with a distant one: neighboring frames or slices look alike."""
    numbered = sorted((item for item in found if re.search(r"\d$", item.id)), key=lambda item: natural_key(item.id))
    if len(numbered) < 8:
        return None
    starts = stable_sample((item.id for item in numbered[:-1]), MOST_PAIRS)
    places = {item.id: place for place, item in enumerate(numbered)}
    small: dict[int, NDArray[np.float64] | None] = {}

    def picture(place: int) -> NDArray[np.float64] | None:
        if place not in small:
            small[place] = _thumbnail(numbered[place].image, files)
        return small[place]

    following = [_correlation(picture(places[name]), picture(places[name] + 1)) for name in starts]
    half = len(numbered) // 2
    others = [_correlation(picture(places[name]), picture((places[name] + half) % len(numbered))) for name in starts]
    near, far = ([value for value in values if value is not None] for values in (following, others))
    if len(near) < 4 or len(far) < 4:
        return None
    return Neighbors(float(np.median(near)), float(np.median(far)), len(near))


def natural_key(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def _thumbnail(path: str, files: RawFiles) -> NDArray[np.float64] | None:
    try:
        data = files.read(path, MAX_BYTES)
        with limited_pillow(MAX_PIXELS):
            image = to_rgb(decoded(data, MAX_PIXELS)[0]).convert("L").resize((THUMBNAIL_PX, THUMBNAIL_PX))
    except Refused:
        return None
    return np.asarray(image, np.float64).ravel()


def _correlation(one: NDArray[np.float64] | None, other: NDArray[np.float64] | None) -> float | None:
    if one is None or other is None or one.std() == 0 or other.std() == 0:
        return None
    return float(np.corrcoef(one, other)[0, 1])


def split_folders(ids: Iterable[str]) -> dict[str, int]:
    """The top folders of ids that are named after a split -> number of images in them."""
    firsts = Counter(name.partition("/")[0] for name in ids if "/" in name)
    return {folder: count for folder, count in sorted(firsts.items()) if folder.lower() in SPLIT_FOLDERS}
