"""Embeds pictures in artifacts, because the Prefect UI shows only what an artifact itself contains."""

import io
from base64 import b64encode
from pathlib import Path

from PIL import Image


def data_url(path: Path, longest_px: int) -> str:
    """The picture as a JPEG in a data URL."""
    with Image.open(path) as picture:
        picture.thumbnail((longest_px, longest_px))
        file = io.BytesIO()
        picture.convert("RGB").save(file, "JPEG")
    return f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"
