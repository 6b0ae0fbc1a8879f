"""Draws an image with its mask, its prediction and the errors. This module does not need torch."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

IGNORED = 255
WRONG = (229, 57, 53, 255)
WIDEST_PX = 2000  # maximum width of a panel

Colors = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, eq=False)
class Picture:
    id: str
    mean_iou: float
    image: NDArray[np.uint8]  # (H, W, 3)
    mask: NDArray[np.uint8]  # (H, W) class indices, 255 = ignored
    prediction: NDArray[np.uint8]  # (H, W)


def save_panel(picture: Picture, colors: Colors, path: Path) -> None:
    """Write image, mask, prediction and errors side by side as a PNG."""
    image = Image.fromarray(picture.image).convert("RGBA")
    layers = (
        np.zeros((*picture.mask.shape, 4), np.uint8),
        class_layer(picture.mask, colors),
        class_layer(picture.prediction, colors),
        error_layer(picture.mask, picture.prediction),
    )
    views = [np.asarray(Image.alpha_composite(image, Image.fromarray(layer)).convert("RGB")) for layer in layers]
    panel = Image.fromarray(np.concatenate(views, axis=1))
    panel.thumbnail((WIDEST_PX, WIDEST_PX), Image.Resampling.NEAREST)
    panel.save(path, "PNG")


def wrong_pixels(mask: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """True where the prediction differs from the mask; False where the mask is ignored."""
    wrong: NDArray[np.bool_] = (mask != IGNORED) & (mask != prediction)
    return wrong


def error_layer(mask: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An RGBA layer (H, W, 4): wrong pixels are red, ignored pixels are hatched, all others are transparent."""
    layer = np.zeros((*mask.shape, 4), np.uint8)
    layer[wrong_pixels(mask, prediction)] = WRONG
    return _hatch(layer, mask == IGNORED)


def class_layer(indices: NDArray[np.uint8], colors: Colors) -> NDArray[np.uint8]:
    """An RGBA layer (H, W, 4): each pixel has the color of its class, and ignored pixels are hatched."""
    palette = np.zeros((256, 4), np.uint8)
    palette[: len(colors)] = [(*color, 255) for color in colors]
    return _hatch(palette[indices], indices == IGNORED)


def _hatch(layer: NDArray[np.uint8], where: NDArray[np.bool_]) -> NDArray[np.uint8]:
    stripes = np.add.outer(*map(np.arange, where.shape)) % 8 < 3
    layer[where] = (128, 128, 128, 70)
    layer[where & stripes] = (128, 128, 128, 230)
    return layer
