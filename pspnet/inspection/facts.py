"""Opens a sample of the files to collect facts: sizes and formats of images, values in masks."""

import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pspnet.dataset.store.splits import stable_uniform
from pspnet.raw.files import RawFiles
from pspnet.raw.images import FORMATS, TURNS, Refused, TooLarge, decoded, limited_pillow, to_rgb
from pspnet.raw.masks import InColors, RawMask, Values, colors_in, levels_in, numbers_in

MOST_OPENED = 2000  # maximum number of images to open for the size in their header
MOST_DECODED = 200
MAX_PIXELS = 30 * 10**6  # larger images are not decoded here
MAX_BYTES = 512 * 2**20
LARGEST_PIXELS = 500 * 10**6  # limit for the one large image that is decoded to confirm its size; takes 2 GB
MOST_LARGE = 3  # maximum number of large images to try
ENOUGH_PIXELS = 100 * 10**6  # stop once this many pixels have been decoded
ANY_SIZE = 10**12
MOST_VALUES = 4096  # maximum number of values to keep per mask
MOST_MASK_COLORS = 64  # a picture with more colors is a photograph, not a mask
KINDS_OF_SUFFIX = {
    "JPEG": (".jpg", ".jpeg"), "MPO": (".jpg", ".jpeg"), "PNG": (".png",), "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"), "BMP": (".bmp",), "GIF": (".gif",),
}  # fmt: skip


@dataclass
class ImageFacts:
    """Facts about images. For most images, only the header is read."""

    looked_at: int = 0
    decoded: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)  # path -> upright (width, height), if decoded
    stated: dict[str, tuple[int, int]] = field(default_factory=dict)  # path -> size in the header, which may be wrong
    rotated: list[str] = field(default_factory=list)
    misnamed: list[str] = field(default_factory=list)
    unusable: dict[str, str] = field(default_factory=dict)  # path -> reason


def stable_sample(names: Iterable[str], most: int) -> list[str]:
    """At most `most` names, chosen the same way on every machine."""
    return sorted(names, key=lambda name: (stable_uniform(name), name))[:most]


def open_images(paths: Iterable[str], files: RawFiles) -> ImageFacts:
    facts = ImageFacts()
    pixels = 0
    for path in stable_sample(paths, MOST_OPENED):
        facts.looked_at += 1
        try:
            width, height = _header(path, files, facts)
        except Refused as refused:
            facts.unusable[path] = refused.found
            continue
        if facts.decoded < MOST_DECODED and pixels < ENOUGH_PIXELS and width * height <= MAX_PIXELS:
            pixels += width * height
            _decode(path, files, facts, MAX_PIXELS)
    _decode_largest(files, facts)
    return facts


def _decode(path: str, files: RawFiles, facts: ImageFacts, max_pixels: int) -> bool:
    try:
        with limited_pillow(max_pixels):
            to_rgb(decoded(files.read(path, MAX_BYTES), max_pixels)[0])
    except (Refused, MemoryError) as error:
        facts.unusable[path] = error.found if isinstance(error, Refused) else "needs more memory than there is"
        del facts.stated[path]
        return False
    facts.decoded += 1
    facts.sizes[path] = facts.stated[path]
    return True


def _decode_largest(files: RawFiles, facts: ImageFacts) -> None:
    """Decode the largest image, to be sure that the largest size does not come from a wrong header."""
    pixels = {path: width * height for path, (width, height) in facts.stated.items()}
    large = [path for path in pixels if MAX_PIXELS < pixels[path] <= LARGEST_PIXELS]
    for path in sorted(large, key=lambda path: (-pixels[path], path))[:MOST_LARGE]:
        if _decode(path, files, facts, LARGEST_PIXELS):
            return


def _header(path: str, files: RawFiles, facts: ImageFacts) -> tuple[int, int]:
    file = files.root / path
    source: Any = file if file.is_file() else io.BytesIO(files.read(path, MAX_BYTES))
    with limited_pillow(ANY_SIZE):
        try:
            with Image.open(source, formats=FORMATS) as image:
                width, height = image.size
                needs_pixels = image.format == "PNG" and "exif" not in image.info  # EXIF may follow the pixels
                orientation = 1 if needs_pixels else image.getexif().get(0x0112, 1)
                kind = _kind(image)
                format_ = image.format or ""
        except UnidentifiedImageError:
            empty = file.is_file() and not file.stat().st_size
            raise Refused("is empty (0 bytes)" if empty else "cannot be recognized as an image", "an image") from None
        except Exception as error:  # decoders can raise anything on corrupt data
            raise Refused(f"cannot be decoded ({str(error) or type(error).__name__})", "a complete image") from None
    facts.formats["JPEG" if format_ == "MPO" else format_] += 1
    facts.kinds[kind] += 1
    if orientation in TURNS:
        facts.rotated.append(path)
        if orientation >= 5:
            width, height = height, width
    if PurePosixPath(path).suffix.lower() not in KINDS_OF_SUFFIX[format_]:
        facts.misnamed.append(path)
    facts.stated[path] = width, height
    return width, height


def _kind(image: Image.Image) -> str:
    if image.mode.startswith(("I", "F")):
        return "gray, 16 bits" if image.mode.startswith("I") else "floating point"
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return "with transparency"
    names = {"1": "1 bit", "L": "gray", "P": "palette", "RGB": "RGB", "CMYK": "CMYK"}
    return names.get(image.mode, image.mode)


@dataclass(frozen=True)
class OpenedMask:
    path: str
    kind: str  # numbers | colors | levels
    shape: tuple[int, int]
    values: NDArray[np.int64]
    pixels: NDArray[np.int64]  # number of pixels of each value
    border: NDArray[np.int64]  # how many of these pixels are next to a different value
    palette: bool
    is_jpeg: bool


@dataclass
class MaskFacts:
    looked_at: list[OpenedMask] = field(default_factory=list)
    unusable: dict[str, Refused] = field(default_factory=dict)
    left_out: int = 0  # number of masks that are too large to open here

    @property
    def values(self) -> set[int]:
        return {value for mask in self.looked_at for value in mask.values.tolist()}

    def table(self, kind: str) -> pd.DataFrame:
        """A row for each value, most pixels first: value, pixels, share, masks, at_border (share of its pixels)."""
        masks = [mask for mask in self.looked_at if mask.kind == kind]
        parts = [pd.DataFrame({"value": k.values, "pixels": k.pixels, "border": k.border, "masks": 1}) for k in masks]
        if not parts:
            return pd.DataFrame({"value": [], "pixels": [], "share": [], "masks": [], "at_border": []})
        table = pd.concat(parts).groupby("value", as_index=False).sum()
        table["share"] = table["pixels"] / table["pixels"].sum()
        table["at_border"] = table["border"] / table["pixels"]
        return table.sort_values(["pixels", "value"], ascending=[False, True], ignore_index=True).drop(columns="border")


def open_masks(masks: Iterable[RawMask], files: RawFiles, as_layout: bool, most: int) -> MaskFacts:
    """Facts about a sample of masks. `as_layout`: read masks as the layout does, instead of by each file's kind."""
    facts = MaskFacts()
    by_path = {mask.path: mask for mask in masks}
    pixels = 0
    for path in stable_sample(by_path, most):
        if pixels > ENOUGH_PIXELS:
            break
        try:
            if as_layout:
                values = by_path[path].values(files, MAX_PIXELS, MAX_BYTES)
                mask = _opened_mask(path, "numbers", values)
            else:
                mask = _open_as_file(path, files.read(path, MAX_BYTES))
        except TooLarge:
            facts.left_out += 1
            continue
        except Refused as refused:
            facts.unusable[path] = refused
            continue
        pixels += mask.shape[0] * mask.shape[1]
        facts.looked_at.append(mask)
    return facts


def _open_as_file(path: str, data: bytes) -> OpenedMask:
    if data.startswith(b"\xff\xd8"):
        return _opened_mask(path, "levels", levels_in(data, MAX_PIXELS), is_jpeg=True)
    palette = data[25:26] == b"\x03" if data.startswith(b"\x89PNG") else data.startswith(b"GIF")
    try:
        return _opened_mask(path, "numbers", numbers_in(data, MAX_PIXELS), palette=palette)
    except InColors:
        return _opened_mask(path, "colors", colors_in(data, MAX_PIXELS))


def _opened_mask(path: str, kind: str, values: Values, palette: bool = False, is_jpeg: bool = False) -> OpenedMask:
    beside = np.zeros(values.shape, bool)
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differs = values[one] != values[other]
        beside[one] |= differs
        beside[other] |= differs
    codes, found = pd.factorize(values.ravel())
    pixels = np.bincount(codes, minlength=len(found))
    border = np.bincount(codes[beside.ravel()], minlength=len(found))
    most = np.argsort(-pixels, kind="stable")[:MOST_VALUES]
    height, width = values.shape
    return OpenedMask(
        path, kind, (height, width), found[most].astype(np.int64), pixels[most], border[most], palette, is_jpeg
    )


def is_mask(path: str, files: RawFiles) -> bool:
    """Whether a file looks like a mask: a lossless picture with few colors."""
    try:
        data = files.read(path, MAX_BYTES)
        with limited_pillow(MAX_PIXELS):
            image, _ = decoded(data, MAX_PIXELS)
            return image.format != "JPEG" and to_rgb(image).getcolors(MOST_MASK_COLORS) is not None
    except Refused:
        return False
