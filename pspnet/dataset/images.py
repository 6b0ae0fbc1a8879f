"""Encoded bytes <-> pixels. Pillow judges raw files; sound ones have one decoder: training and serving see the same."""

import io
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
GLANCE_PX = 17
SAMPLED_EVERY = 4  # pixels, in both directions
VALUES_AND_SQUARES = np.stack([np.arange(256), np.arange(256) ** 2], axis=1)  # of a byte
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
PNG_UNFILTERED = 0
JPEG_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")  # that has a length, or ends the file
START_OF_SCAN, END_OF_JPEG = b"\xff\xda", b"\xff\xd9"
MOST_SCANS = 100  # programs write a dozen

Encoded = bytes | memoryview  # read where it lies

Turn = Callable[[NDArray[Any]], NDArray[Any]]
TURNS: dict[int, Turn] = {  # EXIF orientation -> what makes the stored picture upright
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


class Refused(Exception):
    """Why a file cannot be used: what was found in it, what was expected, what to do; which policy decides."""

    def __init__(self, found: str, expected: str, fix: str = "", kind: str = "unreadable") -> None:
        super().__init__(found)
        self.found, self.expected, self.fix, self.kind = found, expected, fix, kind


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
    orientation: int  # EXIF's, in the raw file; `data` is upright
    format: str  # of the raw file, as Pillow calls it
    channel_sums: list[int]  # of every sixteenth pixel: their number, each channel's sum, each channel's sum of squares
    glance: bytes  # gray pixels, GLANCE_PX in a row and as many rows, by which copies are found


def read_image(data: bytes, max_pixels: int) -> StoredImage:
    """Sound 8-bit JPEG and PNG bytes stay as they are; anything else becomes an upright 8-bit RGB PNG."""
    with limited_pillow(max_pixels) as complaints:
        image, orientation = decoded(data, max_pixels)
        rgb = to_rgb(image)
        if _is_plain(image, data) and orientation == 1 and not complaints:
            width, height = image.size
        else:
            # From the bare pixels: Pillow would carry colour profile and transparency over into the PNG.
            # A photo gains 1 % from level 6, in three times the time.
            pixels = TURNS.get(orientation, np.asarray)(np.asarray(rgb))
            data, (height, width) = _encode(pixels, level=2), pixels.shape[:2]
        sums, glance = _channel_sums(rgb), _glance(rgb, orientation)
    return StoredImage(data, height, width, orientation, image.format or "", sums, glance)


def _channel_sums(rgb: Image.Image) -> list[int]:
    """Of pixels in a grid: a dataset's mean and deviation need no more, and all take long."""
    width, height = (-(-side // SAMPLED_EVERY) for side in rgb.size)
    counts = rgb.resize((width, height), Image.Resampling.NEAREST).histogram()
    sums = np.fromiter(counts, np.int64, 3 * 256).reshape(3, 256) @ VALUES_AND_SQUARES
    return [width * height, *sums.T.ravel().tolist()]


def _glance(rgb: Image.Image, orientation: int) -> bytes:
    small = rgb.convert("L").resize((GLANCE_PX, GLANCE_PX), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return small.tobytes() if orientation == 1 else TURNS[orientation](np.asarray(small)).tobytes()


def decode_image(encoded: Encoded) -> NDArray[np.uint8]:
    """What read_image made -> (H, W, 3)."""
    pixels = _decoded(encoded, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)  # read_image looked at EXIF
    if pixels is not None:
        return pixels
    # The classes behind Image.open have no size limit of their own and look at no EXIF; read_image did both.
    opener = PngImageFile if bytes(encoded[:4]) == PNG_MAGIC[:4] else JpegImageFile
    with opener(io.BytesIO(encoded)) as image:
        return np.array(image.convert("RGB"))


def _decoded(encoded: Encoded, flags: int) -> NDArray[np.uint8] | None:
    """By OpenCV: bit by bit what Pillow gives, sooner and without a copy of the bytes. It refuses a billion pixels."""
    with suppress(cv2.error):
        pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
        return None if pixels is None else np.asarray(pixels, np.uint8)
    return None


def encode_image(pixels: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) -> PNG."""
    return _encode(pixels, level=2)


def encode_mask(mask: NDArray[np.uint8], table: NDArray[np.uint8] | None = None) -> bytes:
    """(H, W) -> PNG, of what the table of 256 says for each value if there is one.

    Rows as they are, quickly packed: a quarter of the time of Pillow's encoder, which tries filters. Training unpacks
    them in every epoch; filtered rows, or only runs of bytes, would take it twice as long.
    """
    height, width = mask.shape
    rows = np.empty((height, width + 1), np.uint8)
    rows[:, 0] = PNG_UNFILTERED
    if table is None:
        rows[:, 1:] = mask
    else:
        cv2.LUT(mask, table, rows[:, 1:])  # four times as fast as NumPy, and straight to its place
    packed = zlib.compress(rows.data, level=2)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)  # 8 bits, gray, not interlaced
    return PNG_MAGIC + _png_chunk(b"IHDR", header) + _png_chunk(b"IDAT", packed) + _png_chunk(b"IEND", b"")


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def decode_mask(encoded: Encoded) -> NDArray[np.uint8]:
    """What encode_mask made, or the same with a palette -> (H, W)."""
    pixels = _decoded(encoded, cv2.IMREAD_UNCHANGED)
    if pixels is not None and pixels.ndim == 2:
        return pixels
    with PngImageFile(io.BytesIO(encoded)) as image:  # OpenCV gives the colours of a palette, not the numbers
        return np.array(image)


# Warning filters and Pillow's pixel limit belong to the whole process. So the first thread that decodes sets them, the
# last one puts them back, and what is recorded and refused in between is each thread's own. No lock is held meanwhile.
_COMING_AND_GOING = threading.Lock()
_limits: list[int] = []  # one for each block that is entered
_put_back = ExitStack()
_recorded: ContextVar[list[str] | None] = ContextVar("_recorded", default=None)


@contextmanager
def limited_pillow(max_pixels: int) -> Iterator[list[str]]:
    """Pillow with a limit that is at least ours; what it warns of goes to the list and nowhere else."""
    with _COMING_AND_GOING:
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
        with _COMING_AND_GOING:
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
            if complaints is None:  # another thread's
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
    """The image, fully decoded but not turned, and its EXIF orientation."""
    if not data:
        raise Refused("is empty (0 bytes)", "an image")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if (pixels := image.width * image.height) > max_pixels:
            raise TooLarge(pixels, max_pixels, "prepare.max_megapixels")
        # The second picture of an MPO is another view or a smaller copy; phones write them. To count the pictures of a
        # TIFF takes time in the square of their number.
        if image.format != "MPO" and getattr(image, "is_animated", False):
            raise Refused("holds several pictures", "one", "Save each as a file of its own.")
        if image.format in ("JPEG", "MPO") and (scans := _scans(data)) > MOST_SCANS:
            raise Refused(f"is a JPEG of {scans:,} scans", f"at most {MOST_SCANS}", "Save it again.")
        image.load()
        orientation = image.getexif().get(0x0112, 1) if _may_be_turned(image) else 1
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        pixels = int(re.findall(r"\d+", str(error))[0])
        raise TooLarge(pixels, max_pixels, "prepare.max_megapixels") from None
    except UnidentifiedImageError:  # its own words hold a memory address
        fix = "Export it again or remove it: it is another kind of file, or its beginning is damaged."
        raise Refused("cannot be recognised as an image", "one of " + ", ".join(FORMATS), fix) from None
    except (Refused, MemoryError):
        raise
    except Exception as error:  # decoders raise anything on broken bytes
        reason = str(error) or type(error).__name__
        raise Refused(f"cannot be decoded ({reason})", "a complete image") from None
    return image, orientation if orientation in TURNS else 1


def _scans(data: bytes) -> int:
    """Of a JPEG, from above. Each goes over the whole picture, and 95 bytes are enough for one."""
    if (most := data.count(START_OF_SCAN)) <= MOST_SCANS:
        return most
    count, place = 0, 2
    while (marker := JPEG_MARKER.search(data, place)) and marker[0] != END_OF_JPEG:
        count += marker[0] == START_OF_SCAN
        place = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return count


def _may_be_turned(image: Image.Image) -> bool:
    """Most are not, and for small images the question takes its time."""
    return isinstance(image, TiffImageFile) or any("exif" in key or "xmp" in key for key in image.info)


def _is_plain(image: Image.Image, data: bytes) -> bool:
    if image.mode not in ("L", "RGB") or "transparency" in image.info:
        return False
    return image.format in ("JPEG", "MPO") or (image.format == "PNG" and bits_per_channel(image, data) == 8)


def bits_per_channel(image: Image.Image, data: bytes) -> int:
    """Per channel, in the file: Pillow turns 2 and 4 into 8, and 16 bits of a colour image too."""
    if isinstance(image, TiffImageFile):
        return int(image.tag_v2.get(258, (8,))[0])
    return data[24] if image.format == "PNG" else 8


def to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return Image.fromarray((_sixteen_bits(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"):
        kind = "floating-point pixels" if image.mode == "F" else f"{image.mode} colours"
        raise Refused(f"has {kind}", "gray, RGB or CMYK of 8 or 16 bits", "Convert it to 8-bit gray or RGB.")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would be a copy


def _sixteen_bits(image: Image.Image) -> NDArray[np.uint16]:
    """The upper 8 of 16 bits are kept, the same for every image: a stretch of its own would make brightness lie."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise Refused(f"has pixel values from {values.min()} to {values.max()}", "from 0 to 65535")
    if values.max() < 4096:
        found = f"has 16 bits a pixel but no value above {values.max():,}"
        fix = "Rescale all images to 8 bits, or to the whole range of 16, by one factor."
        raise Refused(found, "values up to 65,535: the upper 8 bits are kept, and here they are nearly empty", fix)
    return values.astype(np.uint16)


def _encode(pixels: NDArray[np.uint8], level: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", compress_level=level)
    return file.getvalue()
