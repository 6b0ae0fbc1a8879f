"""Guesses the meaning of the values in masks. Each guess comes with evidence."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from pspnet.config.dataset import MaskValue
from pspnet.inspection.facts import MaskFacts, OpenedMask
from pspnet.inspection.spelling import counted
from pspnet.raw.classes import MOST_CLASSES
from pspnet.raw.masks import COLOR, spelled

MOST_COLORS = 64  # maximum number of colors that a user would assign to classes
VOID_NAMES = {"void", "ignore", "ignored", "unlabeled", "unlabelled", "unannotated", "not annotated"}
TWINS = 3  # values that are this close together, and far from all others, may mean the same
FAR = 60  # a value at least this far from the next one counts as far
FEW = 0.002  # share of the pixels; the values of blurred edges between classes are rarer than this
MIDDLE = 128


class Remark(NamedTuple):
    found: str  # what was found, with the evidence
    advice: str


@dataclass(frozen=True)
class Meaning:
    kind: str  # a value of dataset.source.mask_kind
    threshold: int
    classes: dict[str, MaskValue | list[MaskValue]]
    ignore_values: list[MaskValue]
    table: pd.DataFrame
    remarks: tuple[Remark, ...]


def interpret(facts: MaskFacts, several: bool, names: Mapping[int, str]) -> Meaning:
    """Guess the kind of masks and their classes.

    `several`: whether an image has several masks. `names`: value -> name, from a list next to the data.
    """
    kinds = Counter(mask.kind for mask in facts.looked_at)
    if not kinds:
        return Meaning("numbers", MIDDLE, {}, [], facts.table(""), ())
    kind = kinds.most_common(1)[0][0]
    remarks = []
    if len(kinds) > 1:
        found = "the masks are of several kinds: " + ", ".join(f"{count} in {name}" for name, count in kinds.items())
        remarks.append(Remark(found, "Save all masks the same way; the section below is for the most frequent kind."))
    table = facts.table(kind)
    opened = [mask for mask in facts.looked_at if mask.kind == kind]
    if several:
        return _instances(table, remarks)
    if kind == "levels":
        return _jpeg(table, remarks)
    if kind == "colors":
        return _colors(table, opened, names, remarks)
    return _numbers(table, opened, names, remarks)


def _instances(table: pd.DataFrame, remarks: list[Remark]) -> Meaning:
    highest = int(table["value"].max())
    threshold = MIDDLE if highest > MIDDLE else 1
    found = f"several masks per image, with values up to {highest}: a file for each object"
    advice = f"mask_kind: instances merges them into one mask; an object is where a file has {threshold} or more."
    return _two_classes("instances", threshold, table, [*remarks, Remark(found, advice)])


def _jpeg(table: pd.DataFrame, remarks: list[Remark]) -> Meaning:
    if two := _two_peaks(table):
        dark, bright, share = two
        threshold = (dark + bright + 1) // 2
        found = f"the masks are JPEGs, which blur numbers; {share:.1%} of the pixels are near {dark} or {bright}"
        advice = f"mask_kind: levels separates the two at {threshold}. It is better to export the masks again as PNG."
        return _two_classes("levels", threshold, table, [*remarks, Remark(found, advice)])
    found = f"the masks are JPEGs with {len(table)} gray values, and no two dominate"
    advice = "Export them again as PNG: these files no longer show which class a pixel had."
    return Meaning("numbers", MIDDLE, {}, [], table, (*remarks, Remark(found, advice)))


def _colors(table: pd.DataFrame, opened: list[OpenedMask], names: Mapping[int, str], remarks: list[Remark]) -> Meaning:
    dominant = table[table["share"] >= FEW]
    covered = dominant["share"].sum()
    if len(table) <= MOST_COLORS and not _is_blurred(table, dominant):
        found = f"the masks are RGB pictures of {counted(len(table), 'color')} in all: each color is a class"
        remarks.append(Remark(found, "mask_kind: colors reads them; give the class of each color a name."))
        return _classes("colors", sorted(map(int, table["value"])), [], names, table, remarks)
    per_mask = int(np.median([len(mask.values) for mask in opened]))
    if len(dominant) <= MOST_COLORS and covered >= 0.9:
        found = (
            f"the masks are RGB pictures in which {len(dominant)} colors make up {covered:.1%} of the pixels and "
            f"{len(table) - len(dominant):,} other colors the rest. Of these other pixels, "
            f"{_at_border(table.drop(dominant.index))} border another color, so the edges were smoothed"
        )
        if len(dominant) == 2:
            dark, bright = sorted(brightness(int(value)) for value in dominant["value"])
            if bright - dark > 30:
                threshold = (dark + bright + 1) // 2
                advice = (
                    f"mask_kind: levels separates dark from bright at {threshold}. It is better to export the masks "
                    "without smoothing."
                )
                return _two_classes("levels", threshold, table, [*remarks, Remark(found, advice)])
        remarks.append(Remark(found, "Export the masks again without smoothing: `prepare` rejects unknown colors."))
        return _classes("colors", sorted(map(int, dominant["value"])), [], names, table, remarks)
    found = f"the masks are RGB pictures of {per_mask:,} colors each (median), {len(table):,} in total"
    advice = (
        "They may have a color for each object, or be photographs or masks laid over images: not classes. "
        "Look at the contact sheet and name the colors that are classes."
    )
    return Meaning("colors", MIDDLE, {}, [], table, (*remarks, Remark(found, advice)))


def _numbers(table: pd.DataFrame, opened: list[OpenedMask], names: Mapping[int, str], remarks: list[Remark]) -> Meaning:
    values = sorted(int(value) for value in table["value"])
    palettes = sum(mask.palette for mask in opened)
    if palettes:
        found = f"{palettes} of {counted(len(opened), 'mask')} have a palette"
        remarks.append(Remark(found, "Nothing to do: the palette index is the number."))
    if blurred := _blurred(table):
        return _two_classes("levels", blurred[0], table, [*remarks, blurred[1]])
    if len(values) > MOST_CLASSES or values[-1] > 1000:
        found = f"{len(values):,} different numbers, up to {values[-1]:,}"
        advice = "They may be numbers of objects, or classes times 1000: save masks that contain class numbers."
        remarks.append(Remark(found, advice))
        return Meaning("numbers", MIDDLE, {}, [], table, tuple(remarks))
    twins = [] if names else _twins(values)
    ignored, about = _ignored(table, values, twins)
    ignored = [*twins] if ignored and twins else ignored
    remarks += [*_about_twins(twins, values, table, ignored), *about]
    kept = [value for value in values if value not in ignored]
    remarks += _about_numbers(table, kept, ignored, len(opened), bool(names))
    return _classes("numbers", kept, ignored, names, table, remarks, twins)


def _twins(values: list[int]) -> list[int]:
    """The brightest values, if they are close to each other and far from all others."""
    last = [value for value in values if values[-1] - value <= TWINS]
    others = [value for value in values if value not in last]
    return last if len(last) > 1 and others and last[0] - others[-1] >= FAR else []


def _about_twins(twins: list[int], values: list[int], table: pd.DataFrame, ignored: list[int]) -> Iterator[Remark]:
    if twins:
        shares = table.set_index("value")["share"]
        listed = f"{', '.join(map(str, twins[:-1]))} and {twins[-1]}"
        parts = ", ".join(f"{shares[value]:.2%}" for value in twins)
        found = (
            f"{listed} ({parts} of the pixels) are next to each other and far from {values[-len(twins) - 1]}: they "
            "probably mean the same"
        )
        advice = "All are in ignore_values." if ignored else "They are one class below."
        yield Remark(found, f"{advice} If they differ, give each its own class.")


def _ignored(table: pd.DataFrame, values: list[int], twins: list[int]) -> tuple[list[int], list[Remark]]:
    if 255 not in values:
        return [], []
    row = table[table["value"] == 255].iloc[0]
    numbers = f"{row['share']:.1%} of the pixels, {row['at_border']:.0%} of them next to another value"
    others = [value for value in values if value != 255 and value not in twins]
    if not others or (twins and len(others) == 1):
        return [], []
    if len(others) == 1:
        found = f"255 is a class: the only other number is {others[0]}, and 255 covers {numbers}"
        return [], [Remark(found, "Nothing to do: it is the second of two classes.")]
    if others[-1] > 127:
        found = f"255 is the end of a scale, and the next lower number is {others[-1]} ({numbers})"
        return [], [Remark(found, 'It is treated as a class. If it means "not annotated", move it to ignore_values.')]
    found = f'255 means "not annotated": it covers {numbers}, and the other numbers end at {others[-1]}'
    advice = "It is in ignore_values; if it is a class, name it under classes instead."
    return [255], [Remark(found, advice)]


def _about_numbers(
    table: pd.DataFrame, kept: list[int], ignored: list[int], masks: int, named: bool
) -> Iterator[Remark]:
    if len(kept) == 1:
        found = f"every mask that was opened contains only {kept[0]}"
        yield Remark(found, "There is nothing to learn from them: are these the masks, and are the files complete?")
        return
    if kept and kept[0] > 0 and not ignored:
        found = f"the numbers start at {kept[0]}: no pixel of {counted(masks, 'mask')} is 0"
        yield Remark(found, "Nothing to do: any number can be a class, and the numbers need not start at 0.")
    zero = table[table["value"] == 0]
    if len(zero) and len(kept) > 2 and (share := zero.iloc[0]["share"]) < 0.1:
        found = (
            f'0 may mean "not annotated": it covers {share:.1%} of the pixels, '
            f"{zero.iloc[0]['at_border']:.0%} of them next to another value, and occurs in "
            f"{int(zero.iloc[0]['masks'])} of {counted(masks, 'mask')}"
        )
        yield Remark(found, "It is treated as a class. If it is not one, move it to ignore_values.")
    missing = sorted({*range(kept[0], kept[-1])} - {*kept})
    if not named and 0 < len(missing) < len(kept):
        found = f"{', '.join(map(str, missing[:8]))} occur in none of {counted(masks, 'mask')}, but higher numbers do"
        yield Remark(found, "If they are rare classes, name them too.")


def _blurred(table: pd.DataFrame) -> tuple[int, Remark] | None:
    """The threshold between two values that cover nearly all pixels, if many rare border values are in between."""
    if len(table) < 5:
        return None
    two = table.head(2)
    low, high = sorted(int(value) for value in two["value"])
    between = table[(table["value"] > low) & (table["value"] < high)]
    if high - low < 30 or two["share"].sum() < 0.8 or len(between) < len(table) / 2 or len(between) < 3:
        return None
    if (between["at_border"] * between["pixels"]).sum() < 0.5 * between["pixels"].sum():
        return None
    if between["share"].max() > two["share"].min() / 2:
        return None
    threshold = (low + high + 1) // 2
    found = (
        f"the edges are gray: {low} and {high} cover {two['share'].sum():.1%} of the pixels, and {len(between)} values "
        f"in between cover the rest. Of those pixels, {_at_border(between)} border a different value, so the masks "
        "were scaled or smoothed"
    )
    advice = (
        f"mask_kind: levels separates the two at {threshold}. It is better to export the masks at their original size."
    )
    return threshold, Remark(found, advice)


def _is_blurred(table: pd.DataFrame, dominant: pd.DataFrame) -> bool:
    rest = table.drop(dominant.index)
    return len(rest) > len(dominant) and bool((rest["at_border"] * rest["pixels"]).sum() > 0.9 * rest["pixels"].sum())


def _two_peaks(table: pd.DataFrame) -> tuple[int, int, float] | None:
    """(dark, bright, share of the pixels with a value near either of them), or None if there are not two peaks."""
    shares = np.zeros(65536)
    shares[table["value"].astype(int)] = table["share"]
    first = int(table["value"].iloc[0])
    far = table[(table["value"] - first).abs() > 64]
    if far.empty:
        return None
    second = int(far["value"].iloc[0])
    near = sum(shares[max(peak - 24, 0) : peak + 25].sum() for peak in (first, second))
    return (min(first, second), max(first, second), float(near)) if near >= 0.9 else None


def _two_classes(kind: str, threshold: int, table: pd.DataFrame, remarks: list[Remark]) -> Meaning:
    return Meaning(kind, threshold, {"background": 0, "object": 1}, [], table, tuple(remarks))


def _classes(
    kind: str,
    values: list[int],
    ignored: list[int],
    names: Mapping[int, str],
    table: pd.DataFrame,
    remarks: list[Remark],
    twins: Sequence[int] = (),
) -> Meaning:
    """A class for each value. But twins share a class, and values that a list of names calls void get no class."""
    values = sorted({*values, *names} - {*ignored})  # a list of names includes rare classes
    void = [value for value in values if names.get(value, "").strip("_ ").lower() in VOID_NAMES]
    if void:
        listed = ", ".join(f"{spelled(value)} {names[value]}" for value in void)
        found = f'the list next to the data calls {listed}, which means "not annotated"'
        remarks.append(Remark(found, "It is in ignore_values; if it is a class, name it under classes instead."))
    kept = [value for value in values if value not in void][:MOST_CLASSES]
    numbered = {value: value if value < COLOR else place for place, value in enumerate(kept)}
    classes: dict[str, MaskValue | list[MaskValue]] = {}
    for value in kept:
        if value not in twins[:-1]:
            name = names.get(value, f"class_{numbered[value]}")
            classes[name] = [*twins] if value in twins else _as_written(value)
    return Meaning(kind, MIDDLE, classes, [*ignored, *map(_as_written, void)], table, tuple(remarks))


def _as_written(value: int) -> MaskValue:
    return spelled(value).strip("'") if value >= COLOR else value


def brightness(value: int) -> int:
    """The gray level of a number or a color."""
    if value < COLOR:
        return value
    red, green, blue = (value - COLOR).to_bytes(3, "big")
    return round(0.299 * red + 0.587 * green + 0.114 * blue)


def _at_border(rows: pd.DataFrame) -> str:
    return f"{(rows['at_border'] * rows['pixels']).sum() / max(rows['pixels'].sum(), 1):.0%}"
