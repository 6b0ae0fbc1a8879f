"""Templates that can use those of this folder, and pictures as part of a page."""

from base64 import b64encode
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from numpy.typing import NDArray
from PIL import Image


def page_template(path: Path, **filters: Callable[..., str]) -> Template:
    environment = Environment(
        loader=FileSystemLoader([path.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(path.name)


def data_url(pixels: NDArray[np.uint8]) -> str:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=9)
    return "data:image/png;base64," + b64encode(buffer.getvalue()).decode()
