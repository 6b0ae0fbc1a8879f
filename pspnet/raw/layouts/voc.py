"""Layout `voc`: the folders of PASCAL VOC, and of labelme exports in that format.

raw/JPEGImages/2007_000032.jpg   raw/SegmentationClass/2007_000032.png   raw/ImageSets/Segmentation/train.txt
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pspnet.config.dataset import VocParams
from pspnet.dataset.store.splits import ANNOTATED, Split
from pspnet.errors import Problem
from pspnet.raw.classes import Declared
from pspnet.raw.files import RawFiles
from pspnet.raw.layouts.pairs import FoundImage, Naming, once_listed, pairs
from pspnet.raw.masks import InColors, OneFile, Values, color_value, colors_in, numbers_in

NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
IGNORED = 255  # the border around objects
SEAM_COLOR = "#e0e0c0"
OWN_NAMES = "class_names.txt"  # written by labelme: a name for each value, from 0


def find(source: VocParams, raw: RawFiles) -> Iterator[FoundImage | Problem]:
    listed, problems = _listed(source, raw)
    naming = Naming(source.images, source.masks, r"(.*)\.jpe?g", r"(.*)\.png")
    yield from problems
    yield from pairs(naming, raw, lambda paths: VocMask(paths[0]), listed.get)


def classes(_: VocParams, raw: RawFiles) -> Declared:
    own = raw.root / OWN_NAMES
    names = own.read_text(encoding="utf-8").splitlines() if own.is_file() else NAMES
    values = {name.strip("_ ") or str(value): value for value, name in enumerate(names)}
    return Declared(values, {}, [IGNORED])


@dataclass(frozen=True)
class VocMask(OneFile):
    """A mask of palette indices, or of palette colors if a tool saved it as RGB."""

    def values(self, files: RawFiles, max_pixels: int, max_bytes: int) -> Values:
        data = files.read(self.path, max_bytes)
        try:
            return numbers_in(data, max_pixels)
        except InColors:
            colors, places = np.unique(colors_in(data, max_pixels), return_inverse=True)
            known = {color_value(palette_color(index)): index for index in range(IGNORED)}
            known[color_value(SEAM_COLOR)] = IGNORED
            values = np.array([known.get(color, color) for color in colors.tolist()], np.uint32)
            return values[places].reshape(places.shape)


def palette_color(index: int) -> str:
    """Return a palette color. The bits of the index go to red, green and blue in turn, and the lowest bits of the index
    become the highest bits of the color.
    """
    parts = [0, 0, 0]
    for bit in range(8):
        parts[bit % 3] |= (index >> bit & 1) << 7 - bit // 3
    return "#{:02x}{:02x}{:02x}".format(*parts)


def _listed(source: VocParams, raw: RawFiles) -> tuple[dict[str, Split], list[Problem]]:
    """Return the split of each id in the official lists. Names without an image are ignored, because the test list has
    some.
    """
    paths: dict[Split, str] = {split: f"{source.splits}/{split}.txt" for split in ANNOTATED}
    return once_listed(
        {
            split: (path, (raw.root / path).read_text(encoding="utf-8").split())
            for split, path in paths.items()
            if (raw.root / path).is_file()
        }
    )
