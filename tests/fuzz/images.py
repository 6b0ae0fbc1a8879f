"""Fuzzes an image file, read as an image and as each kind of mask."""

import io
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from pspnet.dataset.store.pixels import decode_image
from pspnet.raw.images import Refused, read_image
from pspnet.raw.masks import colors_in, levels_in, numbers_in
from tests.fuzz._edits import nearly
from tests.raw.rawdata import encoded, noise, png_claiming

MOST_PIXELS = 4 * 10**6


def one(data: bytes, folder: Path) -> None:
    """Check that the result is pixels or a rejection with a reason, without any warning, and that
    nothing is written.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with suppress(Refused):
            stored = read_image(data, MOST_PIXELS)
            assert decode_image(stored.data).shape == (stored.height, stored.width, 3)
            assert stored.height * stored.width <= MOST_PIXELS
        for read in (numbers_in, colors_in, levels_in):
            with suppress(Refused):
                assert read(data, MOST_PIXELS).ndim == 2
    assert not list(folder.iterdir())


def _examples() -> list[bytes]:
    color, gray = Image.fromarray(noise(24, 40)), Image.fromarray(noise(24, 40)[..., 0])
    modes = {mode: color.convert(mode) for mode in ("RGB", "RGBA", "P", "CMYK", "1", "L", "LA", "YCbCr", "F", "I")}
    modes["I;16"] = Image.fromarray(np.arange(960, dtype=np.uint16).reshape(24, 40) * 60)
    examples = [png_claiming(60_000, 60_000), png_claiming(2_000, 2_000)]
    for kind in ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP"):
        for image in modes.values():
            with suppress(OSError, ValueError):  # some formats support only some modes
                examples.append(encoded(image, kind))
    examples += [encoded(color, "JPEG", orientation=6), encoded(color, "JPEG", progressive=True)]
    examples += [encoded(color, "PNG", orientation=6), encoded(color, "WEBP", lossless=True)]
    examples += [encoded(color, "TIFF", compression=kind) for kind in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")]
    for kind in ("TIFF", "GIF", "PNG", "WEBP"):
        file = io.BytesIO()
        color.save(file, kind, save_all=True, append_images=[gray])
        examples.append(file.getvalue())
    return examples


INPUTS = nearly(_examples()) | st.binary(max_size=200)
