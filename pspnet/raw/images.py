"""Turn users' image files into valid, upright 8-bit images, checked and repaired with Pillow."""

import io
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from pspnet.dataset.store.pixels import encode_image
from pspnet.errors import Problem

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
GLANCE_PX = 17
SAMPLED_EVERY = 4  # every fourth pixel in both directions
VALUES_AND_SQUARES = np.stack([np.arange(256), np.arange(256) ** 2], axis=1)  # values of each byte and their squares
JPEG_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")  # markers with a length, and the end of the file
START_OF_SCAN, END_OF_JPEG = b"\xff\xda", b"\xff\xd9"
MOST_SCANS = 100  # most programs write about a dozen

Turn = Callable[[NDArray[Any]], NDArray[Any]]
TURNS: dict[int, Turn] = {  # EXIF orientation -> the operation that makes the stored picture upright
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


class Refused(Exception):
    """A file cannot be used: what was found, what was expected, how to fix it, and the kind of problem, which has a
    policy.
    """

    def __init__(self, found: str, expected: str, fix: str = "", kind: str = "unreadable") -> None:
        super().__init__(found)
        self.found, self.expected, self.fix, self.kind = found, expected, fix, kind

    def problem_at(self, where: str) -> Problem:
        return Problem(where, self.found, self.expected, self.fix, self.kind)


class TooLarge(Refused):
    def __init__(self, pixels: int, max_pixels: int, setting: str) -> None:
        found = f"has {pixels / 1e6:,.1f} megapixels"
        expected = f"at most {max_pixels / 1e6:,.1f} ({setting})"
        super().__init__(found, expected, f"Cut it into tiles or raise {setting}.", "too_large")
        self.pixels = pixels


@dataclass(frozen=True)
class StoredImage:
    data: bytes
    height: int
    width: int
    orientation: int  # EXIF orientation of the raw file; `data` is upright
    format: str  # format of the raw file, in Pillow's terms
    channel_sums: list[int]  # over every sixteenth pixel: pixel count, channel sums, sums of squares
    glance: bytes  # (GLANCE_PX, GLANCE_PX) gray pixels, for finding copies


def read_image(data: bytes, max_pixels: int) -> StoredImage:
    """Keep the bytes of sound 8-bit JPEG and PNG files, and convert anything else to an upright 8-bit RGB PNG."""
    with limited_pillow(max_pixels) as complaints:
        image, orientation = decoded(data, max_pixels)
        rgb = to_rgb(image)
        if _is_plain(image, data) and orientation == 1 and not complaints:
            width, height = image.size
        else:
            # Encode the bare pixels: Pillow would copy the color profile and transparency into the PNG.
            pixels = TURNS.get(orientation, np.asarray)(np.asarray(rgb))
            data, (height, width) = encode_image(pixels), pixels.shape[:2]
        sums, glance = _channel_sums(rgb), _glance(rgb, orientation)
    return StoredImage(data, height, width, orientation, image.format or "", sums, glance)


def _channel_sums(rgb: Image.Image) -> list[int]:
    """Return sums over a grid of pixels. They are enough for a dataset's mean and deviation, and much faster to
    compute.
    """
    width, height = (-(-side // SAMPLED_EVERY) for side in rgb.size)
    counts = rgb.resize((width, height), Image.Resampling.NEAREST).histogram()
    sums = np.fromiter(counts, np.int64, 3 * 256).reshape(3, 256) @ VALUES_AND_SQUARES
    return [width * height, *sums.T.ravel().tolist()]


def _glance(rgb: Image.Image, orientation: int) -> bytes:
    small = rgb.convert("L").resize((GLANCE_PX, GLANCE_PX), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return small.tobytes() if orientation == 1 else TURNS[orientation](np.asarray(small)).tobytes()


# Warning filters and Pillow's pixel limit are global to the process. The first thread that decodes sets them and the
# last one restores them; each thread records its own warnings. The lock is not held while decoding.
_ENTERING_OR_LEAVING = threading.Lock()
_limits: list[int] = []  # `max_pixels` of each open `limited_pillow` block
_put_back = ExitStack()
_recorded: ContextVar[list[str] | None] = ContextVar("_recorded", default=None)


@contextmanager
def limited_pillow(max_pixels: int) -> Iterator[list[str]]:
    """Limit Pillow to at least `max_pixels`, and yield a list. Pillow's warnings go to that list and nowhere else."""
    with _ENTERING_OR_LEAVING:
        if not _limits:
            _put_back.enter_context(_own_settings())
        _limits.append(max_pixels)
        Image.MAX_IMAGE_PIXELS = max(_limits)
    complaints: list[str] = []
    before = _recorded.set(complaints)
    try:
        yield complaints
    finally:
        _recorded.reset(before)
        with _ENTERING_OR_LEAVING:
            _limits.remove(max_pixels)
            if _limits:
                Image.MAX_IMAGE_PIXELS = max(_limits)
            else:
                _put_back.close()


@contextmanager
def _own_settings() -> Iterator[None]:
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        show = warnings.showwarning

        def record(message: Warning | str, *rest: Any, **named: Any) -> None:
            complaints = _recorded.get()
            if complaints is None:  # a warning in another thread
                show(message, *rest, **named)
            else:
                complaints.append(str(message))

        warnings.filterwarnings("always", module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.showwarning = record
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def decoded(data: bytes, max_pixels: int) -> tuple[Image.Image, int]:
    """Return the image, fully decoded but not turned upright, and its EXIF orientation."""
    if not data:
        raise Refused("is empty (0 bytes)", "an image")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if (pixels := image.width * image.height) > max_pixels:
            raise TooLarge(pixels, max_pixels, "prepare.max_megapixels")
        # The second picture of an MPO is another view or a smaller copy; phones write them. Counting the pictures in a
        # TIFF takes quadratic time.
        if image.format != "MPO" and getattr(image, "is_animated", False):
            raise Refused("contains several pictures", "one picture", "Save each picture in its own file.")
        if image.format in ("JPEG", "MPO") and (scans := _scans(data)) > MOST_SCANS:
            raise Refused(f"is a JPEG with {scans:,} scans", f"at most {MOST_SCANS}", "Save it again.")
        image.load()
        orientation = image.getexif().get(0x0112, 1) if _may_be_turned(image) else 1
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        pixels = int(re.findall(r"\d+", str(error))[0])
        raise TooLarge(pixels, max_pixels, "prepare.max_megapixels") from None
    except UnidentifiedImageError:  # its message contains a memory address
        fix = "Export it again or remove it: it is another kind of file, or its beginning is damaged."
        raise Refused("cannot be recognized as an image", "one of " + ", ".join(FORMATS), fix) from None
    except (Refused, MemoryError):
        raise
    except Exception as error:  # decoders can raise anything on broken bytes
        reason = str(error) or type(error).__name__
        raise Refused(f"cannot be decoded ({reason})", "a complete image") from None
    return image, orientation if orientation in TURNS else 1


def _scans(data: bytes) -> int:
    """Return an upper bound on the number of scans in a JPEG. Each scan covers the whole picture, and a scan can be as
    small as 95 bytes.
    """
    if (most := data.count(START_OF_SCAN)) <= MOST_SCANS:
        return most
    count, place = 0, 2
    while (marker := JPEG_MARKER.search(data, place)) and marker[0] != END_OF_JPEG:
        count += marker[0] == START_OF_SCAN
        place = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return count


def _may_be_turned(image: Image.Image) -> bool:
    """Return whether the image may have an EXIF orientation. Most images have none, and reading EXIF is slow for small
    images.
    """
    return isinstance(image, TiffImageFile) or any("exif" in key or "xmp" in key for key in image.info)


def _is_plain(image: Image.Image, data: bytes) -> bool:
    if image.mode not in ("L", "RGB") or "transparency" in image.info:
        return False
    return image.format in ("JPEG", "MPO") or (image.format == "PNG" and bits_per_channel(image, data) == 8)


def bits_per_channel(image: Image.Image, data: bytes) -> int:
    """Return the bits per channel in the file. Pillow hides them: it turns 2 and 4 bits into 8, and also 16 bits in
    color images.
    """
    if isinstance(image, TiffImageFile):
        return int(image.tag_v2.get(258, (8,))[0])
    return data[24] if image.format == "PNG" else 8


def to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return Image.fromarray((_sixteen_bits(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"):
        kind = "floating-point pixels" if image.mode == "F" else f"{image.mode} colors"
        raise Refused(f"has {kind}", "gray, RGB or CMYK with 8 or 16 bits", "Convert it to 8-bit gray or RGB.")
    return image if image.mode == "RGB" else image.convert("RGB")  # convert always copies


def _sixteen_bits(image: Image.Image) -> NDArray[np.uint16]:
    """Return the 16-bit values. Callers keep the upper 8 bits of every image, because stretching each image differently
    would distort brightness.
    """
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise Refused(f"has pixel values from {values.min()} to {values.max()}", "from 0 to 65535")
    if values.max() < 4096:
        found = f"has 16 bits per pixel but no value above {values.max():,}"
        fix = "Rescale all images by one factor, to 8 bits or to the whole range of 16 bits."
        raise Refused(found, "values up to 65,535: only the upper 8 bits are kept, and here they are nearly empty", fix)
    return values.astype(np.uint16)
