"""Draw masks from outlines and runs of pixels. A pixel is inside an outline if its center is inside."""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pspnet.raw.files import RawFiles
from pspnet.raw.images import Refused, TooLarge, read_image
from pspnet.raw.masks import numbers_in

FARTHEST_PX = 10**7  # largest coordinate of a point
MOST_CROSSINGS = 10**7  # crossings of an outline with the rows of its image
MOST_DRAWN_PX = 10**10  # pixels drawn by all shapes of an image, which takes half a minute
CORNERS = 64  # corners of the polygon that approximates an ellipse


class Window(NamedTuple):
    """A rectangle in an image, and which of its pixels are inside a shape."""

    top: int
    left: int
    inside: NDArray[np.bool_]


class Shape(Protocol):
    @property
    def number(self) -> int: ...

    @property
    def area_px(self) -> float: ...

    def window(self, height: int, width: int) -> Window:
        """Return the shape's pixels in an image of this size."""


@dataclass(frozen=True)
class Drawing:
    """A mask drawn from shapes, with later shapes on top. If no size is given, the mask is the size of its upright
    image.
    """

    path: str
    size: tuple[int, int] | None  # height, width
    background: int
    shapes: tuple[Shape, ...]
    image: str

    @property
    def paths(self) -> tuple[str, ...]:
        return () if self.size else (self.image,)

    def values(self, files: RawFiles, max_pixels: int, max_bytes: int) -> NDArray[np.uint16]:
        height, width = self.size or _size(files.read(self.image, max_bytes), max_pixels)
        if height * width > max_pixels:
            raise TooLarge(height * width, max_pixels, "prepare.max_megapixels")
        values = np.full((height, width), self.background, np.uint16)
        left_to_draw = MOST_DRAWN_PX
        for shape in self.shapes:
            try:
                top, left, inside = shape.window(height, width)
            except Refused as refused:
                raise Refused(f"for {self.image}: {refused.found}", refused.expected, refused.fix) from None
            left_to_draw -= inside.size
            if left_to_draw < 0:
                found = f"has {len(self.shapes):,} shapes on {self.image} of {height * width / 1e6:,.1f} megapixels"
                raise Refused(found, f"{MOST_DRAWN_PX / 1e6:,.0f} megapixels in all of their bounding boxes")
            values[top : top + inside.shape[0], left : left + inside.shape[1]][inside] = shape.number
        return values


@dataclass(frozen=True)
class Polygon:
    name: str  # for messages
    number: int
    points: "array[float]"  # x, y, x, y ...

    @property
    def area_px(self) -> float:
        x, y = np.asarray(self.points).reshape(-1, 2).T
        return float(abs(x[:-1] @ y[1:] - y[:-1] @ x[1:] + x[-1] * y[0] - y[-1] * x[0]) / 2)

    def window(self, height: int, width: int) -> Window:
        x, y = np.asarray(self.points).reshape(-1, 2).T
        if x.max() < 0 or y.max() < 0 or x.min() > width or y.min() > height:
            found = f"{self.name} is outside the image, from ({x.min():g}, {y.min():g}) to ({x.max():g}, {y.max():g})"
            raise Refused(found, f"points within {width} x {height} pixels")
        top, bottom = max(0, math.floor(y.min())), min(height, math.ceil(y.max()))
        left, right = max(0, math.floor(x.min())), min(width, math.ceil(x.max()))
        return Window(top, left, _inside(x - left, y - top, bottom - top, right - left, self.name))


@dataclass(frozen=True)
class _Placed:
    name: str
    number: int
    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Runs(_Placed):
    """The lengths of runs of pixels, alternately outside and inside, starting outside."""

    counts: "array[int]"
    by_columns: bool

    @property
    def area_px(self) -> float:
        return sum(self.counts[1::2])

    def window(self, height: int, width: int) -> Window:
        _check_within(self, height, width)
        inside = np.repeat(np.arange(len(self.counts)) % 2 == 1, np.asarray(self.counts, np.int64))
        shape = (self.height, self.width)
        return Window(self.top, self.left, inside.reshape(shape[::-1]).T if self.by_columns else inside.reshape(shape))


@dataclass(frozen=True)
class Picture(_Placed):
    """An encoded image that is 0 outside the shape."""

    data: bytes

    @property
    def area_px(self) -> float:
        return self.width * self.height

    def window(self, height: int, width: int) -> Window:
        _check_within(self, height, width)
        inside = numbers_in(self.data, height * width) > 0
        if inside.shape != (self.height, self.width):
            found = f"{self.name} is a picture of {inside.shape[1]} x {inside.shape[0]} pixels"
            raise Refused(found, f"{self.width} x {self.height}, as its corners imply")
        return Window(self.top, self.left, inside)


def polygon(name: str, number: int, points: Any) -> Polygon:
    """Return a polygon from coordinates x, y, x, y ... in any nesting, as read from a file."""
    return Polygon(name, number, array("d", numbers(name, points, at_least=6)))


def box(name: str, number: int, corners: Any, turned_degrees: float = 0) -> Polygon:
    """Return the rectangle given by two opposite `corners`, rotated clockwise around its center."""
    left, top, right, bottom = numbers(name, corners, at_least=4, at_most=4)
    points = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return polygon(name, number, _turned(points, ((left + right) / 2, (top + bottom) / 2), turned_degrees))


def ellipse(name: str, number: int, center_and_radii: Any, turned_degrees: float = 0) -> Polygon:
    x, y, x_radius, y_radius = numbers(name, center_and_radii, at_least=4, at_most=4)
    angles = [2 * math.pi * corner / CORNERS for corner in range(CORNERS)]
    points = [(x + x_radius * math.cos(angle), y + y_radius * math.sin(angle)) for angle in angles]
    return polygon(name, number, _turned(points, (x, y), turned_degrees))


def line(name: str, number: int, points: Any, width_px: float) -> list[Polygon]:
    """Return the parts of a line with round ends and corners. A single point is a disc."""
    coordinates = numbers(name, points, at_least=2)
    corners = list(zip(coordinates[::2], coordinates[1::2], strict=True))
    parts = [ellipse(name, number, (x, y, width_px / 2, width_px / 2)) for x, y in corners]
    for (x, y), (next_x, next_y) in pairwise(corners):
        if length := math.hypot(next_x - x, next_y - y):
            aside = ((next_y - y) / length * width_px / 2, (x - next_x) / length * width_px / 2)
            ends = [(x, y, 1), (next_x, next_y, 1), (next_x, next_y, -1), (x, y, -1)]
            parts.append(polygon(name, number, [(x + side * aside[0], y + side * aside[1]) for x, y, side in ends]))
    return parts


def runs(name: str, number: int, counts: Any, box_px: tuple[int, int, int, int], *, by_columns: bool) -> Runs:
    """`box_px` is left, top, width, height."""
    left, top, width, height = box_px
    if not all(isinstance(count, int) and 0 <= count <= width * height for count in counts):
        raise Refused(f"{name} has runs that are not numbers of pixels", f"numbers from 0 to {width * height:,}")
    if sum(counts) != width * height:
        raise Refused(f"{name} has runs of {sum(counts):,} pixels in total", f"{width} x {height}")
    return Runs(name, number, left, top, width, height, array("q", counts), by_columns)


def uncompressed(name: str, text: str) -> list[int]:
    """Decode COCO's run-length text: 5 bits per letter, lowest first. Each run is stored minus the run two before
    it.
    """
    counts: list[int] = []
    value = bits = 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64 or bits > 50:
            raise Refused(f"{name} has runs in a different encoding ({text[:20]!r})", "COCO's compressed runs")
        value |= (code & 31) << bits
        bits += 5
        if not code & 32:
            if code & 16:
                value -= 1 << bits
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = bits = 0
    return counts


def numbers(name: str, values: Any, *, at_least: int, at_most: int | None = None) -> list[float]:
    """Return flat coordinates x, y, x, y ... from text or numbers in any nesting."""
    try:
        flat = np.asarray(values, np.float64).ravel()
    except (TypeError, ValueError, OverflowError):
        raise Refused(f"{name} has points that are not numbers", "x and y of each") from None
    if not (abs(flat) <= FARTHEST_PX).all():  # also rejects NaN
        raise Refused(f"{name} has a point at {flat[~(abs(flat) <= FARTHEST_PX)][0]}", "points in the image")
    if flat.size % 2 or flat.size < at_least or flat.size > (at_most or flat.size):
        wanted = f"{at_least // 2}" if at_least == at_most else f"at least {at_least // 2}"
        raise Refused(f"{name} has {flat.size} coordinates", f"x and y of {wanted} points")
    return flat.tolist()


def _turned(
    points: Sequence[tuple[float, float]], center: tuple[float, float], degrees: float
) -> list[tuple[float, float]]:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    away = [(x - center[0], y - center[1]) for x, y in points]
    return [(center[0] + x * cos - y * sin, center[1] + x * sin + y * cos) for x, y in away]


def _inside(x: NDArray[np.float64], y: NDArray[np.float64], height: int, width: int, name: str) -> NDArray[np.bool_]:
    """Return (H, W): True for pixels to the right of an odd number of crossings of the outline with the row."""
    end_x, end_y = np.roll(x, -1), np.roll(y, -1)
    first = np.clip(np.ceil(np.minimum(y, end_y) - 0.5), 0, height).astype(np.int64)
    last = np.clip(np.ceil(np.maximum(y, end_y) - 0.5), 0, height).astype(np.int64)
    rows = last - first
    crossings = int(rows.sum())
    if crossings > MOST_CROSSINGS:
        raise Refused(f"{name} crosses the rows of its image {crossings:,} times", f"at most {MOST_CROSSINGS:,}")
    side = np.repeat(np.arange(x.size), rows)
    row = np.arange(crossings) - np.repeat(np.cumsum(rows) - rows - first, rows)
    slope = (end_x - x)[side] / (end_y - y)[side]
    column = np.clip(np.ceil(x[side] + (row + 0.5 - y[side]) * slope - 0.5), 0, width).astype(np.int64)
    turns = np.zeros((height, width + 1), np.uint8)  # the last column is to the right of the image
    np.add.at(turns, (row, column), 1)
    parity = np.bitwise_xor.accumulate(turns & 1, axis=1)
    return parity[:, :width].astype(np.bool_)


def _check_within(shape: _Placed, height: int, width: int) -> None:
    if shape.left < 0 or shape.top < 0 or shape.left + shape.width > width or shape.top + shape.height > height:
        found = f"{shape.name} has {shape.width} x {shape.height} pixels, starting at ({shape.left}, {shape.top})"
        raise Refused(found, f"a position within {width} x {height} pixels")


def _size(data: bytes, max_pixels: int) -> tuple[int, int]:
    image = read_image(data, max_pixels)
    return image.height, image.width
