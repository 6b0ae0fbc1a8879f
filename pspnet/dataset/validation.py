"""One image and its mask: fit for training, or a problem that says why not."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pspnet.dataset.classes import Classes
from pspnet.dataset.images import TURNS, Refused, StoredImage, encode_mask, read_image
from pspnet.dataset.masks import Values, spelled
from pspnet.dataset.raw import RawFiles
from pspnet.dataset.raw_samples import RawSample
from pspnet.dataset.samples import Split
from pspnet.dataset.shards import Record, digest
from pspnet.errors import Problem

BYTES_PER_PIXEL = 8  # 16-bit RGBA, not compressed
METADATA_BYTES = 2**24


@dataclass(frozen=True)
class Checked:
    record: Record
    channel_counts: NDArray[np.int64]  # (3, 256): the image's pixels by channel and value
    class_counts: NDArray[np.int64] | None  # (256,): the mask's pixels by value


def check(sample: RawSample, split: Split, *, files: RawFiles, classes: Classes, max_pixels: int) -> Checked | Problem:
    where = sample.image
    try:
        image = read_image(files.read(sample.image, max_bytes(max_pixels)), max_pixels)
        mask = None
        if sample.mask and split != "unlabeled":  # the layout may say so of an image that has a mask
            where = sample.mask.path
            values = sample.mask.values(files, max_pixels, max_bytes(max_pixels))
            mask = _classes_of(_fitted(values, image), classes)
    except Refused as refused:
        return Problem(where, refused.found, refused.expected, refused.fix)
    stored = None if mask is None else encode_mask(mask)
    record = Record(
        id=sample.id,
        split=split,
        image=image.data,
        mask=stored,
        height=image.height,
        width=image.width,
        group=sample.group,
        source=sample.image,
        sha256=digest(image.data, stored),
    )
    return Checked(record, image.channel_counts, None if mask is None else np.bincount(mask.ravel(), minlength=256))


def max_bytes(max_pixels: int) -> int:
    """What is larger cannot be an image of so many pixels, and is not read at all."""
    return max_pixels * BYTES_PER_PIXEL + METADATA_BYTES


def _fitted(values: Values, image: StoredImage) -> Values:
    """The mask as the upright image is: it may have been drawn on the picture before EXIF turned it."""
    height, width = values.shape
    upright, stored = (image.height, image.width), (image.height, image.width)
    if image.orientation >= 5:
        stored = stored[::-1]
    if values.shape == upright == stored and image.orientation != 1:
        found = f"has a size that fits its image both before and after EXIF orientation {image.orientation}"
        fix = "Save the image upright, without an EXIF orientation."
        raise Refused(found, "to be sure how the mask lies on the image", fix)
    if values.shape == upright:
        return values
    if values.shape == stored:
        return TURNS[image.orientation](values)
    found = f"has {width} x {height} pixels, its image {image.width} x {image.height}"
    fix = "Export it again at that size. If it must be scaled: by nearest neighbour, so that classes do not blend."
    raise Refused(found, "a mask of its image's size", fix)


def _classes_of(values: Values, classes: Classes) -> NDArray[np.uint8]:
    unknown = classes.unknown(values)
    if not unknown:
        return classes.index_of(values)
    most = sorted(unknown, key=lambda value: (-unknown[value], value))[:5]
    found = ", ".join(f"value {spelled(v)} in {unknown[v]:,} pixels ({unknown[v] / values.size:.1%})" for v in most)
    if len(unknown) > len(most):
        found += f" and {len(unknown) - len(most)} more"
    what, listed = 'If that means "not annotated", add', ", ".join(map(spelled, sorted(most)))
    fix = f"{what} `ignore_values: [{listed}]`, else name it as a class: in classes.yaml or dataset of params.yaml."
    known = ", ".join(map(spelled, sorted({*classes.values, *classes.ignore_values})[:20]))
    raise Refused(f"has {found}", f"declared values: {known}", fix)
