"""Layouts of raw data. Each one turns a folder into images, and a Problem for each unusable file.

A new layout needs three files: its module here with an entry in `LAYOUTS`, its params in `config/dataset.py`, and a
line in `inspection/recognition.py`, so that `data inspect` recognizes it.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from pspnet.errors import Problem
from pspnet.raw.classes import Declared
from pspnet.raw.files import RawFiles
from pspnet.raw.layouts import (
    ade20k,
    camvid,
    cityscapes,
    class_folders,
    coco,
    cvat,
    cvat_masks,
    folder,
    labelme,
    voc,
)
from pspnet.raw.layouts.pairs import FoundImage


class Layout(NamedTuple):
    """Both functions take the `dataset.source` section that selects this layout."""

    find: Callable[[Any, RawFiles], Iterator[FoundImage | Problem]]
    classes: Callable[[Any, RawFiles], Declared | None]


LAYOUTS = {
    "folder": Layout(folder.find, lambda source, raw: None),
    "class_folders": Layout(class_folders.find, class_folders.classes),
    "cityscapes": Layout(cityscapes.find, cityscapes.classes),
    "voc": Layout(voc.find, voc.classes),
    "ade20k": Layout(ade20k.find, ade20k.classes),
    "camvid": Layout(camvid.find, camvid.classes),
    "coco": Layout(coco.find, coco.classes),
    "coco_panoptic": Layout(coco.find_panoptic, coco.panoptic_classes),
    "labelme": Layout(labelme.find, labelme.classes),
    "cvat": Layout(cvat.find, cvat.classes),
    "cvat_masks": Layout(cvat_masks.find, cvat_masks.classes),
}
