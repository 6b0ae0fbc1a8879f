"""Writes small real files for tests."""

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pspnet.config.dataset import DatasetParams
from pspnet.config.prepare import PrepareParams
from pspnet.errors import Problem
from pspnet.raw.classes import Classes
from pspnet.raw.validation import CheckedSample, Rules
from tests.parameters import ROOT, demo_params

Pixels = NDArray[np.uint8]
LIMIT = 1_000_000
ORIENTATION = 0x0112


def encoded(
    pixels: NDArray[Any] | Image.Image, kind: str = "PNG", orientation: int | None = None, **options: Any
) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    if orientation is not None:
        options["exif"] = Image.Exif()
        options["exif"][ORIENTATION] = orientation
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def png_claiming(width: int, height: int) -> bytes:
    """Return the header of a PNG file that claims this size, without any pixels."""
    data = encoded(noise(1, 1)[..., 0])
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def dataset_params(**changes: Any) -> DatasetParams:
    """Return params with two classes, 0 and 1. 255 is ignored, and the group is the folder. `source__images="leftImg"`
    changes the source.
    """
    defaults = {"classes": {"back": 0, "front": 1}, "ignore_values": [255], "group_pattern": "^([^/]+)"}
    return demo_params(**{f"dataset__{key}": value for key, value in {**defaults, **changes}.items()}).dataset


def prepare_params(**changes: Any) -> PrepareParams:
    """Return params with changes. `problems__mask_size="fix"` changes a policy."""
    return demo_params(**{f"prepare__{key}": value for key, value in changes.items()}).prepare


def rules(classes: Classes, max_pixels: int = LIMIT, **policies: str) -> Rules:
    params = prepare_params(**{f"problems__{kind}": policy for kind, policy in policies.items()})
    return Rules(classes, params.problems, max_pixels)


def left_out(checked: CheckedSample) -> Problem:
    """Return the problem that excludes the sample."""
    assert checked.image is None and checked.mask is None
    assert checked.verdicts[-1].outcome in ("quarantined", "error")
    return checked.verdicts[-1].problem


def write_pair(raw: Path, name: str, mask: NDArray[Any] | None = None, size: tuple[int, int] = (8, 12)) -> None:
    """Write an image of noise, which is different for each name, and the image's mask if given."""
    write(raw / f"images/{name}.png", encoded(noise(*size, seed=zlib.crc32(name.encode()))))
    if mask is not None:
        write(raw / f"masks/{name}.png", encoded(mask))


def shared_data(name: str) -> Path:
    folder = Path(os.environ.get("PSPNET_SHARED_DATA", ROOT.parent / "shared/data")) / name
    if not folder.is_dir():
        pytest.skip(f"needs {folder}, which is not part of the project")
    return folder
