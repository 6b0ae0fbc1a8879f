"""Finds the ways in which a folder can be read, and lists the most likely first."""

import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

from pspnet.errors import Problem, UserError
from pspnet.inspection.facts import is_mask
from pspnet.inspection.layout_guess import LayoutGuess
from pspnet.inspection.listing import Listing
from pspnet.inspection.meaning import MIDDLE
from pspnet.inspection.overlap import is_region
from pspnet.inspection.pairing import (
    DERIVED_WORDS,
    IMAGE_WORDS,
    Partners,
    Side,
    candidates,
    is_derived,
    side_words,
)
from pspnet.inspection.recognition import recognize_layouts
from pspnet.inspection.section import dataset_params, source_section
from pspnet.inspection.sequences import EVERY_IMAGE
from pspnet.inspection.source_patterns import patterns_for, without
from pspnet.raw.layouts import LAYOUTS
from pspnet.raw.layouts.pairs import FoundImage

MOST_READINGS = 6
SAME = 0.5  # two readings with at least this share of files in common are about the same masks, or the same images
FEWEST = 0.1  # the minimum share of images that get a mask in a second reading


@dataclass(frozen=True)
class Reading:
    """A folder as read in one way."""

    guess: LayoutGuess
    images: list[FoundImage]
    problems: list[Problem]

    @cached_property
    def labeled(self) -> list[FoundImage]:
        return [item for item in self.images if item.mask]

    @cached_property
    def labeled_paths(self) -> set[str]:
        return {item.image for item in self.labeled}

    @cached_property
    def masks(self) -> set[str]:
        return {path for item in self.labeled if item.mask for path in item.mask.paths}


@dataclass(frozen=True)
class Readings:
    """All readings. `sure`: whether the first is clearly the best. `unreadable`: guesses with an obstacle."""

    found: list[Reading]
    sure: bool
    unreadable: list[LayoutGuess]


def find_readings(listing: Listing) -> Readings:
    """Find the readings of a folder.

    Layouts that can be recognized are tried first. Pairs of names are weaker evidence, because most layouts have them.
    """
    certain: list[Reading] = []
    uncertain: list[Reading] = []
    unreadable: list[LayoutGuess] = []
    incomplete = False
    for guess in recognize_layouts(listing):
        incomplete |= bool(guess.obstacle)
        tried = guess if guess.obstacle else read(guess, listing)
        if isinstance(tried, LayoutGuess):
            unreadable.append(tried)
        else:
            (certain if guess.certain else uncertain).append(tried)
    if certain:
        return Readings([*certain, *uncertain], True, unreadable)
    pairs = [] if incomplete else _pairs(listing)
    first = [reading for reading in uncertain if not reading.guess.unlikely]
    found = [*first, *pairs, *(reading for reading in uncertain if reading.guess.unlikely)][:MOST_READINGS]
    return Readings(found, len(found) == 1, [] if found else unreadable)


def _pairs(listing: Listing) -> list[Reading]:
    """The readings that are based on pairs of names; each has different masks.

    Masks that mark the same region of interest in every image are listed last.
    """
    files = {file.name: file.path for file in listing.images}
    names = [name for name in files if not is_derived(name)]
    tried: list[tuple[Partners, Reading]] = []

    @cache
    def looks_like_a_mask(name: str) -> bool:
        return is_mask(files[name], listing.raw)

    for partners in candidates(names, looks_like_a_mask):
        kind = "instances" if partners.several else "numbers"
        source = {
            **patterns_for(partners, names, looks_like_a_mask)._asdict(), "mask_kind": kind, "mask_threshold": MIDDLE,
        }  # fmt: skip
        reading = read(LayoutGuess("folder", "images and masks have matching names", source), listing)
        if isinstance(reading, Reading) and all(_is_rival(reading, partners, *other, listing) for other in tried):
            tried.append((partners, reading))
    own = [_without_masks_of_others(place, tried, listing) for place in range(len(tried))]
    if len(own) == 1:
        return own
    regions = [is_region(reading.masks, listing.raw) for reading in own]
    told = [_as_region(reading) if region else reading for reading, region in zip(own, regions, strict=True)]
    return [told[place] for place in sorted(range(len(own)), key=lambda place: (regions[place], place))]


def _as_region(reading: Reading) -> Reading:
    note = "the masks are nearly the same in every image: they may mark the region that the camera sees"
    return replace(reading, guess=reading.guess._replace(note=note))


def _is_rival(reading: Reading, partners: Partners, best_partners: Partners, best: Reading, listing: Listing) -> bool:
    """Whether a later candidate pairs the same images or masks differently, so that only the user can choose."""
    if (side_words(partners.mask) | side_words(partners.image)) & DERIVED_WORDS:
        return False
    if reading.masks & best.labeled_paths or reading.labeled_paths & best.masks:
        return False  # images and masks with their roles swapped
    if len(reading.masks & best.masks) >= SAME * min(len(reading.masks), len(best.masks)):
        own_images = not reading.labeled_paths & best.labeled_paths
        as_many = len(reading.labeled) >= SAME * len(best.labeled)
        named = side_words(best_partners.image) & IMAGE_WORDS
        return (
            own_images
            and as_many
            and not named
            and not _are_companions(partners.image, best_partners.image)
            and not is_mask(reading.labeled[0].image, listing.raw)
        )
    common = reading.labeled_paths & best.labeled_paths
    return len(common) >= max(SAME * len(reading.labeled), FEWEST * len(best.labeled), 2)


def _are_companions(side: Side, best: Side) -> bool:
    """Whether the files of `side` are named after the images next to them, as x_superpixels.png is after x.jpg."""
    return side.folder == best.folder and not best.tail[0]


def _without_masks_of_others(place: int, tried: list[tuple[Partners, Reading]], listing: Listing) -> Reading:
    """The reading, with an image pattern that excludes the masks of other readings, and the companions of images."""
    _, reading = tried[place]
    unlabeled = {item.image for item in reading.images if not item.mask}
    ahead = [without(partners.mask) for partners, other in tried if other.masks & unlabeled]
    ahead += [without(Side(("", ""), ("suffix", suffix))) for suffix in _companions(reading)]
    if not ahead:
        return reading
    source = reading.guess.source
    narrowed = {**source, "image_names": "".join(dict.fromkeys(ahead)) + source["image_names"]}
    again = read(reading.guess._replace(source=narrowed), listing)
    return again if isinstance(again, Reading) else reading


def _companions(reading: Reading) -> list[str]:
    """Name endings of pictures derived from labeled images: `_superpixels` for x_superpixels.png next to x.jpg."""
    labeled = {item.id for item in reading.labeled}
    suffixes: Counter[str] = Counter()
    for item in reading.images:
        match = re.fullmatch(r"(.+?)([_\-.][^\W\d_]\w*)", item.id)
        if match and not item.mask and match[1] in labeled:
            suffixes[match[2]] += 1
    return sorted(suffix for suffix, count in suffixes.items() if count >= max(2, FEWEST * len(labeled)))


def read(guess: LayoutGuess, listing: Listing) -> Reading | LayoutGuess:
    """The folder as read with the guessed layout. If it cannot be read that way, the guess with the obstacle."""
    images, problems = [], []
    try:
        source = dataset_params(section_of(source_section(guess.layout, guess.source))).source
        for item in LAYOUTS[guess.layout].find(source, listing.raw):
            if isinstance(item, Problem):
                problems.append(item)
            elif item.problem:
                problems.append(item.problem)
            else:
                images.append(item)
    except UserError as error:
        return guess._replace(obstacle=str(error))
    first = next((item for item in images if item.mask), None)
    if not first or not first.mask:
        shown = "; ".join(str(problem) for problem in problems[:3])
        return guess._replace(obstacle=f"no image has a usable mask{f': {shown}' if shown else ''}")
    if guess.layout == "folder":
        guess = guess._replace(reason=f"names: {first.image} has the mask {first.mask.path}")
    return Reading(guess, images, problems)


def section_of(source: dict[str, Any], **known: Any) -> dict[str, Any]:
    usual = {"classes": {}, "colors": {}, "ignore_values": [], "group_pattern": EVERY_IMAGE, "labeled_fraction": 1.0}
    return {"source": source, **usual, **known}
