"""The kinds of raw mask. Each kind produces one number per pixel."""

from dataclasses import dataclass
from functools import reduce
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from pspnet.raw.files import RawFiles
from pspnet.raw.images import TURNS, Refused, bits_per_channel, decoded, limited_pillow, to_rgb

Values = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32]  # uint32 is for colors
COLOR = 1 << 24  # added to a color's number to keep it above any gray value
TRANSPARENT = ("is partly transparent", "one number per pixel", "Save the mask without an alpha channel.")


class InColors(Refused):
    """The mask contains colors, but numbers were expected."""


class RawMask(Protocol):
    """A mask found by a layout. It is small when pickled. Its repr includes everything it depends on except file
    contents.
    """

    @property
    def path(self) -> str:
        """The file that problem reports refer to."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Every file that this mask reads."""

    def values(self, files: RawFiles, max_pixels: int, max_bytes: int) -> Values:
        """Return one number per pixel: (H, W)."""


@dataclass(frozen=True)
class OneFile:
    path: str

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path,)


@dataclass(frozen=True)
class Numbers(OneFile):
    """A mask in which the gray value or palette index is the number."""

    def values(self, files: RawFiles, max_pixels: int, max_bytes: int) -> Values:
        return numbers_in(files.read(self.path, max_bytes), max_pixels)


@dataclass(frozen=True)
class Colors(OneFile):
    """A mask in which the color is the number, as returned by `color_value`."""

    def values(self, files: RawFiles, max_pixels: int, max_bytes: int) -> Values:
        return colors_in(files.read(self.path, max_bytes), max_pixels)


@dataclass(frozen=True)
class Levels(OneFile):
    """A mask that is 1 where the file is bright and 0 elsewhere."""

    threshold: int

    def values(self, files: RawFiles, max_pixels: int, max_bytes: int) -> Values:
        levels = levels_in(files.read(self.path, max_bytes), max_pixels)
        return (levels >= self.threshold).astype(np.uint8)


@dataclass(frozen=True)
class Instances:
    """A mask with one file per object: 1 where any file is bright, 0 elsewhere."""

    paths: tuple[str, ...]
    threshold: int

    @property
    def path(self) -> str:
        return self.paths[0]

    def values(self, files: RawFiles, max_pixels: int, max_bytes: int) -> Values:
        return reduce(np.maximum, _all_levels(self.paths, self.threshold, files, max_pixels, max_bytes))


@dataclass(frozen=True)
class ClassMasks:
    """A mask with one file per class: the class's number where its file is bright (later files win), 0 elsewhere."""

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
    """Return the masks of one image, which must all be the same size."""
    masks = [Levels(path, threshold).values(files, max_pixels, max_bytes) for path in paths]
    for path, mask in zip(paths, masks, strict=True):
        if mask.shape != masks[0].shape:
            found = f"is not the same size as the other masks for this image: {path} differs from {paths[0]}"
            raise Refused(found, "masks of one size")
    return masks


def color_value(text: str) -> int:
    """Return the number of a color such as '#dc143c' in a color mask."""
    return COLOR | int(text.removeprefix("#"), 16)


def spelled(value: int) -> str:
    """Return a mask value as a person would write it."""
    return f"'#{value - COLOR:06x}'" if value >= COLOR else str(value)


def numbers_in(data: bytes, max_pixels: int) -> Values:
    """Return the numbers in a mask: (H, W). A palette image gives its indices, and a 1-bit image gives 0 and 1."""
    with limited_pillow(max_pixels):
        image, orientation = decoded(data, max_pixels)
        values = _numbers(image, data)
    return values if orientation == 1 else TURNS[orientation](values)


def colors_in(data: bytes, max_pixels: int) -> NDArray[np.uint32]:
    """Return the colors in a mask as numbers: (H, W)."""
    with limited_pillow(max_pixels):
        image, orientation = decoded(data, max_pixels)
        _check_lossless(image)
        if _has_transparency(image):
            raise Refused(*TRANSPARENT)
        if bits_per_channel(image, data) == 16 or image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX"):
            raise Refused(f"has {bits_per_channel(image, data)}-bit {image.mode} colors", "8-bit RGB colors")
        parts = cv2.cvtColor(np.asarray(image.convert("RGB")), cv2.COLOR_RGB2BGRA)
    parts[..., 3] = COLOR >> 24
    values = parts.view("<u4")[..., 0].astype(np.uint32, copy=False)
    return values if orientation == 1 else TURNS[orientation](values)


def levels_in(data: bytes, max_pixels: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Return the brightness of a mask: (H, W), at the bit depth of the file."""
    with limited_pillow(max_pixels):
        image, orientation = decoded(data, max_pixels)
        if _has_transparency(image):
            raise Refused(*TRANSPARENT)
        levels: NDArray[Any] = _whole_numbers(np.asarray(image)) if image.mode.startswith("I") else _gray(image)
    return levels if orientation == 1 else TURNS[orientation](levels)


def _numbers(image: Image.Image, data: bytes) -> NDArray[np.uint8] | NDArray[np.uint16]:
    _check_lossless(image)
    if isinstance(image, TiffImageFile) and image.tag_v2.get(262) == 0:
        raise Refused("is a TIFF in which 0 means white, so its numbers may be inverted", "a TIFF in which 0 is black")
    if _has_transparency(image):
        raise Refused(*TRANSPARENT)
    values = np.asarray(image)
    if image.mode in ("RGBA", "LA", "PA"):
        values = values[..., :-1]
    if values.ndim == 3:
        if (values != values[..., :1]).any():
            colors = image.getcolors(256)
            count = f"{len(colors)}" if colors else "more than 256"
            fix = "If the colors stand for classes, set dataset.source.mask_kind: colors; else save class numbers."
            raise InColors(f"is a color picture ({count} colors)", "one number per pixel", fix)
        values = values[..., 0]
    values = _whole_numbers(values)
    if values.itemsize > 1:
        return values
    bits = bits_per_channel(image, data)
    # Pillow stretches 2- and 4-bit gray to 0..255, which turns class 1 into 85 or 17.
    if image.mode == "L" and bits in (2, 4):
        return values // np.uint8(255 // (2**bits - 1))
    return values


def _has_transparency(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA") and image.getchannel("A").getextrema()[0] != 255


def _check_lossless(image: Image.Image) -> None:
    if image.format in ("JPEG", "MPO"):
        fix = (
            "Export the masks again as PNG: what JPEG lost cannot be restored. With only two classes, "
            "dataset.source.mask_kind: levels works."
        )
        raise Refused("is a JPEG", "a lossless format: JPEG changes the class numbers", fix)


def _whole_numbers(values: NDArray[Any]) -> NDArray[np.uint8] | NDArray[np.uint16]:
    if values.dtype != np.uint8 and (values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535):
        raise Refused(f"has values from {values.min()} to {values.max()}", "whole numbers from 0 to 65535")
    return values.astype(np.uint16) if values.itemsize > 1 else values.astype(np.uint8, copy=False)


def _gray(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(to_rgb(image).convert("L"))
