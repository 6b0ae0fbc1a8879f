"""The ways in which raw data say what is where: each gives one number a pixel."""

from dataclasses import dataclass
from functools import reduce
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from pspnet.dataset.images import TURNS, Refused, bits_per_channel, decoded, limited_pillow, to_rgb
from pspnet.dataset.raw import RawFiles

Values = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32]  # the last: of colours
COLOR = 1 << 24  # what a colour's number has above any gray value
TRANSPARENT = ("is partly transparent", "one number a pixel", "Save the mask without alpha channel.")


class InColors(Refused):
    """Where numbers were looked for."""


class RawMask(Protocol):
    """Small when pickled, and its repr says all that it is made from but the content of the files."""

    @property
    def path(self) -> str:
        """The file to look at when something is wrong."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Every file it is read from."""

    def values(self, files: RawFiles, max_pixels: int, max_bytes: int) -> Values:
        """(H, W)"""


@dataclass(frozen=True)
class OneFile:
    path: str

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path,)


@dataclass(frozen=True)
class Numbers(OneFile):
    """A gray value or palette index is the number."""

    def values(self, files: RawFiles, max_pixels: int, max_bytes: int) -> Values:
        return numbers_in(files.read(self.path, max_bytes), max_pixels)


@dataclass(frozen=True)
class Colors(OneFile):
    """A colour is the number, as `color_value` makes it."""

    def values(self, files: RawFiles, max_pixels: int, max_bytes: int) -> Values:
        return colors_in(files.read(self.path, max_bytes), max_pixels)


@dataclass(frozen=True)
class Levels(OneFile):
    """1 where it is bright, else 0."""

    threshold: int

    def values(self, files: RawFiles, max_pixels: int, max_bytes: int) -> Values:
        levels = levels_in(files.read(self.path, max_bytes), max_pixels)
        return (levels >= self.threshold).astype(np.uint8)


@dataclass(frozen=True)
class Instances:
    """A file for each object: 1 where any of them is bright, else 0."""

    paths: tuple[str, ...]
    threshold: int

    @property
    def path(self) -> str:
        return self.paths[0]

    def values(self, files: RawFiles, max_pixels: int, max_bytes: int) -> Values:
        return reduce(np.maximum, _all_levels(self.paths, self.threshold, files, max_pixels, max_bytes))


@dataclass(frozen=True)
class ClassMasks:
    """A file for each class: its number where it is bright, a later one on top; 0 where none is."""

    numbered: tuple[tuple[int, str], ...]  # number, path
    threshold: int

    @property
    def path(self) -> str:
        return self.paths[0]

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(path for _, path in self.numbered)

    def values(self, files: RawFiles, max_pixels: int, max_bytes: int) -> Values:
        masks = _all_levels(self.paths, self.threshold, files, max_pixels, max_bytes)
        values = np.zeros(masks[0].shape, np.uint16)
        for (number, _), mask in zip(self.numbered, masks, strict=True):
            values[mask == 1] = number
        return values


def _all_levels(
    paths: tuple[str, ...], threshold: int, files: RawFiles, max_pixels: int, max_bytes: int
) -> list[Values]:
    """Of one image, and so of one size."""
    masks = [Levels(path, threshold).values(files, max_pixels, max_bytes) for path in paths]
    for path, mask in zip(paths, masks, strict=True):
        if mask.shape != masks[0].shape:
            found = f"and the other masks of its image: {path} is of another size than {paths[0]}"
            raise Refused(found, "masks of one size")
    return masks


def color_value(text: str) -> int:
    """'#dc143c' -> its number in such a mask."""
    return COLOR | int(text.removeprefix("#"), 16)


def spelled(value: int) -> str:
    """A mask value as a person writes it."""
    return f"'#{value - COLOR:06x}'" if value >= COLOR else str(value)


def numbers_in(data: bytes, max_pixels: int) -> Values:
    """The numbers in a mask: (H, W). Of a palette image its indices, of a 1-bit image 0 and 1."""
    with limited_pillow(max_pixels):
        image, orientation = decoded(data, max_pixels)
        values = _numbers(image, data)
    return values if orientation == 1 else TURNS[orientation](values)


def colors_in(data: bytes, max_pixels: int) -> NDArray[np.uint32]:
    """The colours in a mask as numbers: (H, W)."""
    with limited_pillow(max_pixels):
        image, orientation = decoded(data, max_pixels)
        _check_lossless(image)
        if _has_transparency(image):
            raise Refused(*TRANSPARENT)
        if bits_per_channel(image, data) == 16 or image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX"):
            raise Refused(f"has {image.mode} colours of {bits_per_channel(image, data)} bits", "RGB colours of 8 bits")
        parts = cv2.cvtColor(np.asarray(image.convert("RGB")), cv2.COLOR_RGB2BGRA)
    parts[..., 3] = COLOR >> 24
    values = parts.view("<u4")[..., 0].astype(np.uint32, copy=False)
    return values if orientation == 1 else TURNS[orientation](values)


def levels_in(data: bytes, max_pixels: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """How bright a mask is: (H, W), in the depth of the file."""
    with limited_pillow(max_pixels):
        image, orientation = decoded(data, max_pixels)
        if _has_transparency(image):
            raise Refused(*TRANSPARENT)
        levels: NDArray[Any] = _whole_numbers(np.asarray(image)) if image.mode.startswith("I") else _gray(image)
    return levels if orientation == 1 else TURNS[orientation](levels)


def _numbers(image: Image.Image, data: bytes) -> NDArray[np.uint8] | NDArray[np.uint16]:
    _check_lossless(image)
    if isinstance(image, TiffImageFile) and image.tag_v2.get(262) == 0:
        raise Refused("is a TIFF in which 0 means white, so its numbers may be inverted", "0 means black")
    if _has_transparency(image):
        raise Refused(*TRANSPARENT)
    values = np.asarray(image)
    if image.mode in ("RGBA", "LA", "PA"):
        values = values[..., :-1]
    if values.ndim == 3:
        if (values != values[..., :1]).any():
            colors = image.getcolors(256)
            count = f"{len(colors)}" if colors else "more than 256"
            fix = "If its colours name the classes, set dataset.source.mask_kind: colors; else save class numbers."
            raise InColors(f"is a colour picture ({count} colours)", "one number a pixel", fix)
        values = values[..., 0]
    values = _whole_numbers(values)
    if values.itemsize > 1:
        return values
    bits = bits_per_channel(image, data)
    # Pillow shows 2- and 4-bit gray stretched to 0..255: class 1 as 85 or 17.
    if image.mode == "L" and bits in (2, 4):
        return values // np.uint8(255 // (2**bits - 1))
    return values


def _has_transparency(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA") and image.getchannel("A").getextrema()[0] != 255


def _check_lossless(image: Image.Image) -> None:
    if image.format in ("JPEG", "MPO"):
        fix = (
            "Export the masks as PNG again: what JPEG lost cannot be restored. Of two classes, mask_kind: levels does."
        )
        raise Refused("is a JPEG", "a lossless format: JPEG changes the class numbers", fix)


def _whole_numbers(values: NDArray[Any]) -> NDArray[np.uint8] | NDArray[np.uint16]:
    if values.dtype != np.uint8 and (values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535):
        raise Refused(f"has values from {values.min()} to {values.max()}", "whole numbers from 0 to 65535")
    return values.astype(np.uint16) if values.itemsize > 1 else values.astype(np.uint8, copy=False)


def _gray(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(to_rgb(image).convert("L"))
