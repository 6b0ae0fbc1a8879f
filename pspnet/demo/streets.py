"""Draw the demo data: streets in which classes differ in texture and position, never in color.

Pixels are computed with integers and numpy's + - * /. IEEE 754 defines their rounding, so every machine draws the same
bytes. (rng.uniform and rng.normal are avoided: their C code may fuse operations or call libm, which differs by
machine.)
"""

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from pspnet.errors import Problem, UserError
from pspnet.machine.outputs import whole_folder

HEIGHT_PX, WIDTH_PX = 96, 128
FRAMES = 4  # frames per street; they are near-duplicates, so splits must be by street
COLORS = {
    "sky": [122, 167, 201],
    "road": [112, 106, 122],
    "building": [190, 140, 110],
    "tree": [113, 156, 110],
    "car": [68, 92, 150],
    "person": [206, 88, 96],
}
_SKY, _ROAD, _BUILDING, _TREE, _CAR, _PERSON = range(len(COLORS))
_EMPTY = 255
_MARGIN_PX = 16  # how far the camera can pan to either side
_MARK = "synthetic.json"

_Pixels = NDArray[np.uint8]  # (H, W) or (H, W, 3)
_Places = NDArray[np.int64]  # (H, W)
_Tones = NDArray[np.float64]  # (H, W), from 0 (the first color of the pixel's class) to 1 (the second)
_Appearance = tuple[NDArray[np.bool_], _Tones]  # outline and texture


def is_synthetic(folder: Path) -> bool:
    return (folder / _MARK).is_file()


def synthesize(folder: Path, images: int, labeled: int, seed: int, tick: Callable[[int, int, str], None]) -> None:
    """Draw a complete folder or none. A folder that already contains synthetic data is left unchanged."""
    wanted = [("images", images, images >= 1, "at least 1"), ("seed", seed, seed >= 0, "at least 0")]
    wanted.append(("labeled", labeled, 0 <= labeled <= max(0, images), f"from 0 to the number of images, {images}"))
    problems = [Problem(where, str(found), expected) for where, found, right, expected in wanted if not right]
    if folder.exists() and not is_synthetic(folder) and (folder.is_file() or any(folder.iterdir())):
        fix = (
            "Move it elsewhere. To use your own data: pspnet data inspect data/raw --write, pspnet plan, make retrain."
        )
        problems.append(Problem(str(folder), "contains data that is not synthetic", "an empty folder or none", fix))
    if problems:
        raise UserError(problems)
    if is_synthetic(folder):
        return
    with_mask = _spread(images, labeled)
    with whole_folder(folder) as partial:
        (partial / "images").mkdir()
        (partial / "masks").mkdir()
        for number in range(images):
            group, frame = divmod(number, FRAMES)
            if frame == 0:
                world = _build(np.random.default_rng((seed, group)))
            image, mask = _draw(world, frame, np.random.default_rng((seed, group, frame + 1)))  # (s, g, 0) is (s, g)
            name = f"street{group:05d}_{frame}.png"
            (partial / "images" / name).write_bytes(_png(image))
            if number in with_mask:
                (partial / "masks" / name).write_bytes(_png(mask))
            tick(number + 1, images, "drawing")
        values = {name: value for value, name in enumerate(COLORS)}
        classes = {"classes": values, "colors": COLORS, "ignore_values": [255]}
        (partial / "classes.yaml").write_text(yaml.safe_dump(classes, sort_keys=False, default_flow_style=None))
        mark = {"synthetic": True, "images": images, "labeled": labeled, "seed": seed, "format": 1}
        (partial / _MARK).write_text(json.dumps(mark) + "\n")


def _spread(images: int, labeled: int) -> set[int]:
    """Return the numbers of the images that get a mask: whole, evenly spaced streets, the last of which can be cut
    short.
    """
    streets, chosen = -(-images // FRAMES), -(-labeled // FRAMES)
    order = sorted(range(streets), key=lambda street: street * chosen % streets >= chosen)
    numbers = (street * FRAMES + frame for street in order for frame in range(FRAMES))
    return set([number for number in numbers if number < images][:labeled])


def _png(pixels: _Pixels) -> bytes:
    """Return the pixels as an uncompressed PNG, because zlib and its replacements compress to different bytes."""
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    # A single block, because the rows are below 64 KiB.
    stored = b"\x78\x01\x01" + struct.pack("<HH", len(rows), len(rows) ^ 0xFFFF) + rows
    header = struct.pack(">IIBBBBB", *pixels.shape[1::-1], 8, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", stored + struct.pack(">I", zlib.adler32(rows))), (b"IEND", b""))
    number = struct.Struct(">I").pack
    packed = (number(len(data)) + name + data + number(zlib.crc32(name + data)) for name, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@dataclass(frozen=True)
class _Thing:
    """An object on the street: center and foot in world pixels, three random numbers, and pixels moved per frame."""

    kind: int
    x: int
    foot: int
    width: int
    height: int
    style: list[int]
    step: int = 0


@dataclass(frozen=True)
class _Street:
    horizon: int
    vanish_x: int
    slope: int  # slope of the road's edges, in sixteenths: 0 is a wide square, 11 is a narrow street
    pan: int  # camera motion in pixels per frame
    colors: _Tones  # (classes, 2, 3)
    grain: _Tones  # these three cover the whole world, including margins
    leaves: _Tones
    clouds: _Tones

    def edge(self, x: _Places | int) -> _Places:
        """Return the first row of the road in these columns."""
        return np.asarray(self.horizon + np.maximum(0, np.abs(x - self.vanish_x) - 10) * self.slope // 16)


def _build(rng: np.random.Generator) -> tuple[_Street, list[_Thing]]:
    """Return a street and its objects, nearest first."""
    size = HEIGHT_PX, WIDTH_PX + 2 * _MARGIN_PX
    spots = rng.integers(0, 2, (size[0] + 2, size[1] + 2))
    blots = sum(spots[y : y + size[0], x : x + size[1]] for y in range(3) for x in range(3))
    leaves = np.clip((blots - 3) / 3, 0, 1)
    horizon, vanish_x, slope, pan = (int(n) for n in rng.integers((42, 40, 0, -4), (52, 89, 12, 5)))
    street = _Street(horizon, vanish_x, slope, pan, _palette(rng), rng.random(size), leaves, _smooth(rng, size))
    things = []

    def place(kind: int, x: int, foot: int, width: int, height: int, step: int = 0) -> None:
        things.append(_Thing(kind, x, foot, width, height, rng.integers(0, 1000, 3).tolist(), step))

    for _ in range(rng.integers(1, 4)):
        x = int(rng.integers(10, 119))
        foot = int(rng.integers(street.edge(x) + 6, HEIGHT_PX + 4))
        height = 9 + (foot - horizon) * 2 // 5
        place(_CAR, x, foot, height * int(rng.integers(14, 19)) // 10, height, int(rng.integers(-5, 6)))
    for _ in range(rng.integers(1, 4)):
        x = int(rng.choice(rng.integers((6, 86), (42, 122))))
        foot = min(int(street.edge(x) + rng.integers(4, 18)), HEIGHT_PX + 4)
        height = 22 + (foot - horizon) * 2 // 5
        place(_PERSON, x, foot, max(9, height // 3) | 1, height, int(rng.integers(-3, 4)))
    for _ in range(rng.integers(1, 4)):
        x = int(rng.integers(0, WIDTH_PX))
        foot = int(street.edge(x) + rng.integers(1, 5))
        height = int(rng.integers(28, 40)) + (foot - horizon) // 3
        place(_TREE, x, foot, height * 3 // 4 | 1, height)
    things.sort(key=lambda thing: -thing.foot)
    left = -_MARGIN_PX - int(rng.integers(0, 12))
    while left < WIDTH_PX + _MARGIN_PX:
        width = int(rng.integers(18, 38))
        height = int(rng.integers(14, 30)) + abs(left + width // 2 - vanish_x) // 4
        place(_BUILDING, left + width // 2, horizon, width, min(height, horizon - 8))
        left += width
    return street, things


def _palette(rng: np.random.Generator) -> _Tones:
    """Return muted hues from around the color wheel, each light and dark, assigned to the classes at random."""
    count = len(COLORS)
    hue = (rng.random() + np.arange(count) / count + 0.12 * rng.random(count)) % 1 * 6
    pure = np.clip(2 - np.abs((hue[:, None] - (0, 2, 4) + 3) % 6 - 3), 0, 1)
    saturation, value, shade = (rng.random((count, 3)) * (0.32, 0.33, 0.18) + (0.1, 0.62, 0.5)).T[..., None]
    light = 255 * value * (1 - saturation * (1 - pure))
    pairs = np.stack([light, light * shade + (6, 2, 14)], axis=1)[rng.permutation(count)]
    return np.where(rng.random((count, 1, 1)) < 0.5, pairs, pairs[:, ::-1])


def _smooth(rng: np.random.Generator, size: tuple[int, int]) -> _Tones:
    """Return random tones on a coarse grid, blended in between."""
    grid = rng.random((12, 8))
    (row, y), (column, x) = np.divmod(np.arange(size[0]), 10), np.divmod(np.arange(size[1]), 28)
    y, x = ((3 - 2 * part) * part * part for part in (y[:, None] / 10, x / 28))
    above, below = (grid[rows][:, column] * (1 - x) + grid[rows][:, column + 1] * x for rows in (row, row + 1))
    return np.asarray(above * (1 - y) + below * y)


def _draw(world: tuple[_Street, list[_Thing]], frame: int, rng: np.random.Generator) -> tuple[_Pixels, _Pixels]:
    """Return the image and its mask, drawn front to back. A mostly hidden object is left out."""
    street, things = world
    shift = street.pan * (frame - 1) + int(rng.integers(-1, 2))
    y, x = np.mgrid[:HEIGHT_PX, shift : shift + WIDTH_PX]
    grain, leaves, clouds = (field[:, x[0] + _MARGIN_PX] for field in (street.grain, street.leaves, street.clouds))
    ground = y >= street.edge(x)
    mask = np.full(x.shape, _EMPTY, np.uint8)
    tones, light = np.zeros(x.shape), np.ones(x.shape)
    for thing in things:
        u, v = x - (thing.x + thing.step * frame - thing.width // 2), y - (thing.foot - thing.height)
        outline, texture = _APPEARANCES[thing.kind](u, v, thing)
        seen = outline & (mask == _EMPTY)
        if thing.kind == _BUILDING:
            seen &= ~ground
        elif seen.sum() < max(64, outline.sum() // 2) or min(seen.any(0).sum(), seen.any(1).sum()) < 8:
            continue
        else:
            shadow = (2 * u - thing.width) ** 2 + 25 * (y - thing.foot) ** 2 < thing.width**2
            light[shadow & ground & (mask == _EMPTY)] = 0.72
        mask[seen], light[seen] = thing.kind, 0.86 + thing.style[0] % 29 / 100
        tones[seen] = (leaves if thing.kind == _TREE else texture)[seen]
    rest = mask == _EMPTY
    depth = np.maximum(1, y - street.horizon)
    dash = (abs(x - street.vanish_x) * 16 <= depth) & (1200 // depth % 24 < 12)
    sky, road = 0.55 * y / street.horizon + 0.6 * clouds - 0.1, np.where(dash, 1, 0.2 + 0.5 * grain)
    tones[rest], mask[rest] = np.where(ground, road, sky)[rest], np.where(ground, _ROAD, _SKY)[rest]
    first, second = street.colors[mask, 0], street.colors[mask, 1]
    noise = rng.integers(-6, 7, (*mask.shape, 1))
    image = (first + (second - first) * tones[..., None]) * light[..., None] + noise
    return np.clip(image, 0, 255).astype(np.uint8), mask


def _building(u: _Places, v: _Places, thing: _Thing) -> _Appearance:
    across, down = 7 + thing.style[1] % 4, 8 + thing.style[2] % 4
    window = ((u - 2) % across < across - 4) & (v >= 4) & ((v - 4) % down < down - 4)
    return (u >= 0) & (u < thing.width) & (v >= 0), np.select([window, v < 2], [0.95, 0.4], 0.1)


def _tree(u: _Places, v: _Places, thing: _Thing) -> _Appearance:
    radius, middle = thing.width // 3, thing.width // 2
    outline = (abs(u - middle) <= 3) & (v > radius) & (v < thing.height)
    for across, down in ((middle, radius), (radius, radius * 2), (thing.width - 1 - radius, radius * 2)):
        outline |= (u - across) ** 2 + (v - down) ** 2 <= radius * radius
    return outline, np.zeros(u.shape)


def _car(u: _Places, v: _Places, thing: _Thing) -> _Appearance:
    height, waist, radius = thing.height, thing.height * 2 // 5, thing.height // 5
    side = np.minimum(u, thing.width - 1 - u)  # from the nearer end
    body = (side >= 0) & (v >= waist) & (v < height) & (side + v - waist >= 2)
    cabin = (side >= thing.width // 5 + (waist - v) // 3) & (v >= 0) & (v < waist)
    wheel = (side - thing.width // 4) ** 2 + (v - height + radius) ** 2 <= radius * radius
    glass = cabin & (v >= 2) & (side >= thing.width // 5 + 2)
    band = body & ((v - waist) % 4 < 2)
    return body | cabin, np.select([wheel, glass, band], [1, 0.9, 0.45], 0.05)


def _person(u: _Places, v: _Places, thing: _Thing) -> _Appearance:
    half, off = thing.width // 2, abs(u - thing.width // 2)
    radius = max(3, half * 3 // 5)
    neck, waist = 2 * radius + 1, radius + thing.height // 2
    head = off * off + (v - radius) ** 2 <= radius * radius + 1
    body = (off <= half - (v == neck) - (v > waist)) & (v >= neck) & (v < thing.height)
    stripe = (u + (1 if thing.style[1] % 2 else -1) * v) % 5 < 2
    return head | body, np.select([v < neck, (v > waist) & (off > 0), stripe], [0.25, 0.7, 1], 0.1)


_APPEARANCES = {_BUILDING: _building, _TREE: _tree, _CAR: _car, _PERSON: _person}
