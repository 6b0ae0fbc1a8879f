"""The meaning of the numbers in raw and prepared masks."""

import colorsys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from pspnet.config.dataset import ClassValues, ColorPart, DatasetParams, MaskValue, MaskValues
from pspnet.config.reading import read_yaml, validate
from pspnet.config.section import Section
from pspnet.dataset.store.pixels import encode_mask
from pspnet.errors import Problem, UserError
from pspnet.raw.masks import COLOR, Values, color_value, spelled

IGNORE = 255  # the only value in prepared masks that is not a class
MOST_CLASSES = IGNORE

MOST_SHOWN = 20
FEW_VALUES = 6
NUMBER_OR_COLOR = "a number or a color such as '#dc143c'"

Color = tuple[int, int, int]

EXAMPLE = """classes in one of the two, for example

classes:
  background: 0
  scratch: [1, 2]       # two mask values, one class
  dent: '#dc143c'       # a color, for color masks
colors:                 # optional, for pictures
  scratch: [220, 20, 60]
ignore_values: [255]    # optional: not annotated"""


@dataclass(frozen=True)
class Classes:
    """The classes, ordered by their numbers in prepared masks, and their values in raw masks."""

    names: tuple[str, ...]
    colors: tuple[Color, ...]
    values: Mapping[int, int]  # raw value -> class
    ignore_values: tuple[int, ...]

    @cached_property
    def known(self) -> frozenset[int]:
        """The values allowed in a raw mask."""
        return frozenset((*self.values, *self.ignore_values))

    def unknown(self, counts: Mapping[int, int]) -> dict[int, int]:
        """Return the entries of `counts` (pixels by raw value) that are neither a class nor ignored."""
        return {value: count for value, count in counts.items() if value not in self.known}

    def class_counts(self, counts: Mapping[int, int]) -> dict[int, int]:
        """Convert pixel counts by raw value to counts by class. Values that are not a class count as IGNORE."""
        pixels: dict[int, int] = {}
        for value, count in counts.items():
            index = self.values.get(value, IGNORE)
            pixels[index] = pixels.get(index, 0) + count
        return dict(sorted(pixels.items()))

    def index_of(self, values: Values) -> NDArray[np.uint8]:
        """Convert raw values (H, W) to classes (H, W), with IGNORE for ignored and unknown values."""
        if values.itemsize > 2:
            known = np.array(sorted(self.values), np.uint32)
            classes = np.array([self.values[value] for value in known.tolist()], np.uint8)
            places = np.minimum(np.searchsorted(known, values), known.size - 1)
            return np.where(known[places] == values, classes[places], np.uint8(IGNORE))
        return self._class_of_value[values]

    def encoded(self, values: Values, found: Iterable[int]) -> bytes:
        """Do the same as `encode_mask(self.index_of(values))`, but faster. `found` lists the values that occur."""
        if values.itemsize > 1:
            return encode_mask(self.index_of(values))
        are_classes = all(self._class_of_value[value] == value for value in found)
        return encode_mask(values.astype(np.uint8, copy=False), None if are_classes else self._class_of_value[:256])

    @cached_property
    def _class_of_value(self) -> NDArray[np.uint8]:
        """A lookup table from raw value to class, for all values except colors."""
        table = np.full(2**16, IGNORE, np.uint8)
        for value, index in self.values.items():
            if value < table.size:
                table[value] = index
        return table

    def nearest(self, values: Values, unknown: Iterable[int]) -> Values:
        """Return `values` (H, W) with each unknown value replaced by the nearest class's value."""
        own = np.array([value for value in self.values if (value >= COLOR) == (values.itemsize > 2)])
        if not own.size:
            return values
        found, places = np.unique(values, return_inverse=True)
        for place in np.flatnonzero(np.isin(found, list(unknown))):
            found[place] = own[np.abs(_parts(own) - _parts(found[place])).sum(axis=-1).argmin()]
        return cast("Values", found[places].reshape(values.shape))


def _parts(values: Any) -> NDArray[np.int64]:
    """Return the components used to measure the distance between values: red, green and blue for a color."""
    whole = np.asarray(values, np.int64)[..., None]
    return np.where(whole >= COLOR, whole >> np.array([16, 8, 0]) & 255, whole)


def pixel_counts(values: Values, expected: Collection[int] = ()) -> dict[int, int]:
    """Count the pixels of each value. If there are few `expected` values, passing them makes counting faster."""
    if len(expected) <= FEW_VALUES:  # comparing with each value is faster than counting all of them
        found = {value: int(np.count_nonzero(values == value)) for value in sorted(expected)}
        if sum(found.values()) == values.size:
            return {value: pixels for value, pixels in found.items() if pixels}
    if values.dtype == np.uint8:  # Pillow counts bytes five times as fast as NumPy
        return {value: pixels for value, pixels in enumerate(Image.fromarray(values).histogram()) if pixels}
    every, pixels = np.unique(values, return_counts=True)
    return dict(zip(every.tolist(), pixels.tolist(), strict=True))


class _ClassesFile(Section):
    classes: dict[str, ClassValues]
    """Class name -> its value (or values) in the masks."""
    colors: dict[str, list[ColorPart]] = Field(default_factory=dict)
    """Class name -> [red, green, blue] in pictures."""
    ignore_values: MaskValues = Field(default_factory=list)
    """Mask values that say "not annotated"."""


class Declared(NamedTuple):
    """The classes defined by params.yaml, classes.yaml or a layout."""

    classes: Mapping[str, MaskValue | list[MaskValue]]
    colors: Mapping[str, list[int]]
    ignore_values: list[MaskValue]
    by_label: bool = False  # the masks are drawn from labels, and their numbers are internal to this package


def declared_classes(dataset: DatasetParams, raw: Path, of_layout: Declared | None = None) -> Classes:
    """Return the classes from params.yaml or classes.yaml, but never both, or else the layout's."""
    path = raw / "classes.yaml"
    named = of_layout or Declared({}, {}, [])
    if dataset.classes:
        if path.is_file():
            found = "names the classes, and so does dataset.classes in params.yaml"
            raise UserError(Problem(str(path), found, "one of the two", "Remove this file, or set dataset.classes: {}"))
        own = Declared(dataset.classes, dataset.colors, dataset.ignore_values)
        return _build("params.yaml", _without_labels("params.yaml", own, named))
    if dataset.colors or dataset.ignore_values:
        found = "has dataset.colors or dataset.ignore_values without dataset.classes"
        raise UserError(Problem("params.yaml", found, "all three in one file", f"Move them to {path}."))
    if path.is_file():
        content = validate(_ClassesFile, read_yaml(path), str(path))
        own = Declared(content.classes, content.colors, content.ignore_values)
        return _build(str(path), _without_labels(str(path), own, named))
    if of_layout:
        return _build(f"layout {dataset.source.layout}", of_layout)
    raise UserError(Problem(str(path), "is missing, and dataset.classes in params.yaml is {}", EXAMPLE))


def read_classes(path: Path) -> Classes:
    """Return the classes listed in a classes.yaml file, in file order."""
    content = validate(_ClassesFile, read_yaml(path), str(path))
    return _build(str(path), Declared(content.classes, content.colors, content.ignore_values))


def _without_labels(where: str, declared: Declared, named: Declared) -> Declared:
    """Return `declared` with the layout's names replaced by the values they stand for."""
    problems = []
    used: set[MaskValue] = set()

    def values(owner: str, own: MaskValue | list[MaskValue]) -> list[MaskValue]:
        result: list[MaskValue] = []
        for value in _listed(own):
            used.add(value)
            is_text = isinstance(value, str)
            if is_text and value in named.classes:
                result += _listed(named.classes[str(value)])
            elif named.by_label or (is_text and not str(value).startswith("#")):
                expected = f"a label: {first_few(named.classes)}" if named.by_label else NUMBER_OR_COLOR
                if named.classes and not named.by_label:
                    expected += f", or a name from the layout: {first_few(named.classes)}"
                problems.append(Problem(where, f"{owner} has value {value!r}", expected))
            else:
                result.append(value)
        return result

    classes = {name: values(f"class '{name}'", own) for name, own in declared.classes.items()}
    ignore_values = values("ignore_values", declared.ignore_values)
    if named.by_label:
        ignore_values += named.ignore_values
        if rest := [label for label in named.classes if label not in used]:
            fix = f"To make them background: `background: [{', '.join(dict.fromkeys(['background', *rest]))}]`."
            expected = "each label in a class or in ignore_values"
            problems.append(Problem(where, f"assigns no class to {len(rest)} labels: {first_few(rest)}", expected, fix))
    if problems:
        raise UserError(problems)
    return Declared(classes, declared.colors, ignore_values)


def first_few(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:MOST_SHOWN])
    return shown if len(names) <= MOST_SHOWN else f"{shown} and {len(names) - MOST_SHOWN:,} more"


def _listed(value: MaskValue | list[MaskValue]) -> list[MaskValue]:
    return value if isinstance(value, list) else [value]


def _build(where: str, declared: Declared) -> Classes:
    classes, colors = declared.classes, declared.colors
    values = {name: _numbers(_listed(value)) for name, value in classes.items()}
    ignore_values = _numbers(declared.ignore_values)
    if problems := list(_problems(where, values, colors, ignore_values)):
        raise UserError(problems)
    return Classes(
        names=tuple(values),
        colors=tuple(_color(name, own, i, colors) for i, (name, own) in enumerate(values.items())),
        values={value: index for index, own in enumerate(values.values()) for value in own},
        ignore_values=tuple(sorted(set(ignore_values))),
    )


def _problems(
    where: str, classes: Mapping[str, list[int]], colors: Mapping[str, list[int]], ignore_values: list[int]
) -> Iterator[Problem]:
    if len(classes) < 2:
        fix = "Also name the class of everything else, such as background: 0."
        found = f"names only one class, {', '.join(classes)}" if classes else "names no class"
        yield Problem(where, found, "at least two", fix)
    if len(classes) > MOST_CLASSES:
        yield Problem(where, f"names {len(classes)} classes", f"at most {MOST_CLASSES}")
    for name, own in classes.items():
        if not name.strip():
            yield Problem(where, f"the class with values {own} has no name")
        if not own:
            yield Problem(where, f"class '{name}' has no value", "its number in the masks")
        if both := sorted({*own} & {*ignore_values}):
            yield Problem(where, f"value {spelled(both[0])} is class '{name}' and also ignored", "one of the two")
    uses = Counter(value for own in classes.values() for value in own)
    for value, count in sorted(uses.items()):
        if count > 1:
            names = ", ".join(f"'{name}'" for name, own in classes.items() if value in own)
            yield Problem(where, f"value {spelled(value)} occurs {count} times ({names})", "each value once")
    for name, color in colors.items():
        if name not in classes:
            yield Problem(where, f"names a color for '{name}', which is not a class", "one of " + ", ".join(classes))
        if len(color) != 3:
            yield Problem(where, f"'{name}' has color {color}", "[red, green, blue] from 0 to 255")


def _numbers(values: list[MaskValue]) -> list[int]:
    return [color_value(value) if isinstance(value, str) else value for value in values]


def _color(name: str, values: list[int], index: int, colors: Mapping[str, list[int]]) -> Color:
    """Return the chosen color, the color in the masks if none was chosen, or a default."""
    if name not in colors and values[0] < COLOR:
        return default_color(index)
    red, green, blue = colors.get(name) or (values[0] - COLOR).to_bytes(3, "big")
    return red, green, blue


def default_color(index: int) -> Color:
    """Return a color with a hue one golden angle from its neighbors, in one of three brightness levels."""
    hue, value = index * 0.61803398875 % 1, (0.95, 0.7, 0.5)[index % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, value)
    return round(red * 255), round(green * 255), round(blue * 255)
