"""Draws a contact sheet for the user: a few images, each next to a copy with its mask drawn over it."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pspnet.inspection.facts import MAX_BYTES, MAX_PIXELS, stable_sample
from pspnet.inspection.sequences import natural_key
from pspnet.printable import printable
from pspnet.raw.classes import IGNORE, Classes, pixel_counts
from pspnet.raw.files import RawFiles
from pspnet.raw.images import TURNS, Refused, decoded, limited_pillow, to_rgb
from pspnet.raw.masks import Values
from pspnet.raw.sample import RawSample

MOST_SHOWN = 12
PICTURE_PX = 240  # length of a picture's longer side
GAP_PX = 12
LINE_PX = 20
COLUMNS = 3
MOST_NAMED = 24  # maximum number of classes in the legend
PAPER, INK, FAINT = (255, 255, 255), (30, 30, 30), (120, 120, 120)
IGNORED_COLOR, UNKNOWN_COLOR = (255, 255, 255), (255, 0, 255)
OPACITY, FAINT_OPACITY = 0.6, 0.2
UNKNOWN = IGNORE - 1  # no class in practice: a sheet with 255 classes is unreadable anyway


class _Shown(NamedTuple):
    name: str
    image: Image.Image
    classes: NDArray[np.uint8] | None  # class indices, at the full size of the image


def contact_sheet(
    samples: Sequence[RawSample], files: RawFiles, classes: Classes | None, title: str, most: int = MOST_SHOWN
) -> bytes | None:
    """The contact sheet as PNG bytes, or None if no image can be shown."""
    by_id = {sample.id: sample for sample in samples}
    shown: list[_Shown] = []
    for name in stable_sample(by_id, most * 4):
        if len(shown) < most and (one := _shown(by_id[name], files, classes)):
            shown.append(one)
    if not shown:
        return None
    shown.sort(key=lambda one: natural_key(one.name))
    file = io.BytesIO()
    _page(shown, classes, title).save(file, "PNG")
    return file.getvalue()


def _shown(sample: RawSample, files: RawFiles, classes: Classes | None) -> _Shown | None:
    try:
        data = files.read(sample.image, MAX_BYTES)
        with limited_pillow(MAX_PIXELS):
            image, orientation = decoded(data, MAX_PIXELS)
            stored = np.asarray(to_rgb(image))
        upright = TURNS.get(orientation, np.asarray)(stored)
        values = sample.mask.values(files, MAX_PIXELS, MAX_BYTES) if sample.mask and classes else None
    except Refused:
        return None
    if values is None or classes is None:
        return _Shown(sample.id, _fitted(upright), None)
    if values.shape != upright.shape[:2] and values.shape == stored.shape[:2]:
        values = TURNS[orientation](values)
    return _Shown(sample.id, _fitted(upright), _numbers(values, classes))


def _numbers(values: Values, classes: Classes) -> NDArray[np.uint8]:
    numbers = classes.index_of(values)
    if unknown := [*classes.unknown(pixel_counts(values))]:
        numbers = np.where(np.isin(values, unknown), np.uint8(UNKNOWN), numbers)
    return numbers


def _palette(classes: Classes) -> NDArray[np.uint8]:
    palette = np.full((256, 3), UNKNOWN_COLOR, np.uint8)
    palette[: len(classes.colors)] = classes.colors
    palette[IGNORE] = IGNORED_COLOR
    return palette


def _over(one: _Shown, classes: Classes, most: int) -> Image.Image:
    """The image with its colored mask drawn over it. The most frequent class is drawn faintly."""
    assert one.classes is not None
    opacity = np.full(256, OPACITY * 255, np.uint8)
    opacity[most], opacity[IGNORE] = FAINT_OPACITY * 255, 255
    colored, strength = (
        Image.fromarray(table[one.classes]).resize(one.image.size, Image.Resampling.NEAREST)
        for table in (_palette(classes), opacity)
    )
    return Image.composite(colored, one.image, strength)


def _fitted(pixels: NDArray[np.uint8]) -> Image.Image:
    """The picture, scaled to the size of a tile. A small picture is enlarged so that every pixel is visible."""
    height, width = pixels.shape[:2]
    factor = PICTURE_PX / max(height, width)
    size = max(round(width * factor), 1), max(round(height * factor), 1)
    way = Image.Resampling.NEAREST if factor > 1 or pixels.ndim == 2 else Image.Resampling.BOX
    return Image.fromarray(np.ascontiguousarray(pixels)).resize(size, way)


def _page(shown: Sequence[_Shown], classes: Classes | None, title: str) -> Image.Image:
    font, small = ImageFont.load_default(16), ImageFont.load_default(13)
    counts = _counts(shown)
    pictures = 2 if counts.any() else 1
    columns = min(COLUMNS if pictures == 2 else 2 * COLUMNS, len(shown))
    tile_width = PICTURE_PX * pictures + 4 * (pictures - 1)
    rows = [shown[start : start + columns] for start in range(0, len(shown), columns)]
    heights = [max(one.image.height for one in row) + LINE_PX + GAP_PX for row in rows]
    width = max(columns * (tile_width + GAP_PX) + GAP_PX, 520)
    legend = _legend(counts, classes)
    across = max((width - GAP_PX) // 240, 1)
    top = GAP_PX + 28
    legend_height = (-(-len(legend) // across) * (LINE_PX + 2) + GAP_PX) if legend else 0
    page = Image.new("RGB", (width, top + sum(heights) + legend_height + GAP_PX), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((GAP_PX, GAP_PX), _shortened(title, draw, font, width - 2 * GAP_PX), INK, font)
    y = top
    for row, height in zip(rows, heights, strict=True):
        for place, one in enumerate(row):
            x = GAP_PX + place * (tile_width + GAP_PX)
            page.paste(one.image, (x, y))
            if classes and one.classes is not None:
                page.paste(_over(one, classes, int(counts[:UNKNOWN].argmax())), (x + PICTURE_PX + 4, y))
            name = _shortened(one.name, draw, small, tile_width)
            draw.text((x, y + height - LINE_PX - GAP_PX + 3), name, FAINT, small)
        y += height
    for place, (color, text) in enumerate(legend):
        x, line = GAP_PX + place % across * 240, y + place // across * (LINE_PX + 2)
        draw.rectangle((x, line, x + 26, line + 14), fill=color, outline=FAINT)
        draw.text((x + 32, line), _shortened(text, draw, small, 200), INK, small)
    return page


def _counts(shown: Sequence[_Shown]) -> NDArray[np.int64]:
    counts = np.zeros(256, np.int64)
    for one in shown:
        if one.classes is not None:
            counts += np.bincount(one.classes.ravel(), minlength=256)
    return counts


def _legend(counts: NDArray[np.int64], classes: Classes | None) -> list[tuple[tuple[int, int, int], str]]:
    if classes is None or not counts.any():
        return []
    shares = counts / counts.sum()
    named = [*zip(classes.colors, classes.names, shares, strict=False)][:UNKNOWN]
    named = sorted(named, key=lambda entry: -entry[2])[:MOST_NAMED]
    legend = [(color, f"{name} {share:.1%}") for color, name, share in named if share]
    if counts[UNKNOWN]:
        legend.append((UNKNOWN_COLOR, f"(no class) {shares[UNKNOWN]:.1%}"))
    if counts[IGNORE]:
        legend.append((IGNORED_COLOR, f"(ignored) {shares[IGNORE]:.1%}"))
    return legend


def _shortened(
    text: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> str:
    """The text, shortened to fit the width. It is cut at the start, because the end of a path says more."""
    text = printable(text)
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(f"...{text}", font) > width:
        text = text[1:]
    return f"...{text}"
