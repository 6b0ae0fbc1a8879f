"""One image and its mask: fit for training, mended, or left out, and why."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from pspnet.config.prepare import ProblemsParams
from pspnet.dataset.classes import IGNORE, Classes, pixel_counts
from pspnet.dataset.images import GLANCE_PX, TURNS, Refused, StoredImage, read_image
from pspnet.dataset.masks import Values, spelled
from pspnet.dataset.problems import KEPT, Told, judged
from pspnet.dataset.raw import RawFiles
from pspnet.dataset.raw_samples import RawSample
from pspnet.errors import Problem

BYTES_PER_PIXEL = 8  # 16-bit RGBA, not compressed
METADATA_BYTES = 2**24
BLURRED_FROM = 8  # values that no class has
BLURRED_SHARE = 0.3  # of the pixels at most: else the classes are misnamed
SAME_SHAPE = 0.01  # by which width / height of a mask may differ from its image's

SUFFIXES_OF = {
    "JPEG": (".jpg", ".jpeg"), "MPO": (".jpg", ".jpeg"), "PNG": (".png",), "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"), "BMP": (".bmp",), "GIF": (".gif",),
}  # fmt: skip


@dataclass(frozen=True)
class Rules:
    classes: Classes
    policies: ProblemsParams
    max_pixels: int

    @property
    def max_bytes(self) -> int:
        return max_bytes(self.max_pixels)


@dataclass
class Checked:
    """What is known of a sample once it has been looked at. Without an image it is not used."""

    sample: RawSample
    told: list[Told] = field(default_factory=list)
    image: bytes | None = None
    mask: bytes | None = None
    height: int = 0
    width: int = 0
    glance: bytes = bytes(GLANCE_PX**2)
    channel_sums: list[int] = field(default_factory=lambda: [0] * 7)
    class_counts: dict[int, int] = field(default_factory=dict)  # pixels by value of the mask


def max_bytes(max_pixels: int) -> int:
    """What is larger cannot be an image of so many pixels, and is not read at all."""
    return max_pixels * BYTES_PER_PIXEL + METADATA_BYTES


class _LeftOut(Exception):
    """It has been told why."""


def check(sample: RawSample, *, files: RawFiles, rules: Rules) -> Checked:
    checked = Checked(sample)
    try:
        with _named(checked, sample.image, rules):
            image = read_image(files.read(sample.image, rules.max_bytes), rules.max_pixels)
        _check_suffix(checked, image, rules)
        if sample.mask is None:
            expected = "a mask for every image (prepare.problems.image_without_mask)"
            problem = Problem(sample.image, "has no mask", expected, kind="image_without_mask")
            if rules.policies.image_without_mask != "allow":  # where it is welcome it is no problem
                _tell(checked, problem, rules)
        else:
            with _named(checked, sample.mask.path, rules):
                values = sample.mask.values(files, rules.max_pixels, rules.max_bytes)
                fitted = _fitted(checked, values, image, rules)
                checked.mask = _encoded(checked, fitted, rules)
    except _LeftOut:
        return checked
    checked.image, checked.height, checked.width = image.data, image.height, image.width
    checked.glance, checked.channel_sums = image.glance, image.channel_sums
    return checked


def _tell(checked: Checked, problem: Problem, rules: Rules, mended: bool = False) -> None:
    """Also whether the sample goes on: it does not unless the problem is mended or allowed."""
    told = judged(problem, rules.policies, mended)
    checked.told.append(told)
    if told.outcome not in KEPT:
        raise _LeftOut


@contextmanager
def _named(checked: Checked, where: str, rules: Rules) -> Iterator[None]:
    try:
        yield
    except Refused as refused:
        _tell(checked, Problem(where, refused.found, refused.expected, refused.fix, refused.kind), rules)
    except MemoryError:
        raise MemoryError(where) from None


def _check_suffix(checked: Checked, image: StoredImage, rules: Rules) -> None:
    suffixes = SUFFIXES_OF[image.format]
    if not checked.sample.image.lower().endswith(suffixes):
        problem = Problem(checked.sample.image, f"is a {image.format} by its content", f"a name in {suffixes[0]}",
                          "Rename it; what is in the file counts.", "wrong_suffix")  # fmt: skip
        _tell(checked, problem, rules)


def _fitted(checked: Checked, values: Values, image: StoredImage, rules: Rules) -> Values:
    """The mask as the upright image is: it may have been drawn on the picture before EXIF turned it."""
    height, width = values.shape
    upright, stored = (image.height, image.width), (image.height, image.width)
    if image.orientation >= 5:
        stored = stored[::-1]
    if values.shape == upright == stored and image.orientation != 1:
        found = f"has a size that fits its image both before and after EXIF orientation {image.orientation}"
        fix = "Save the image upright, without an EXIF orientation."
        raise Refused(found, "to be sure how the mask lies on the image", fix, "mask_size")
    if values.shape == upright:
        return values
    if values.shape == stored:
        return TURNS[image.orientation](values)
    found = f"has {width} x {height} pixels, its image {checked.sample.image} {image.width} x {image.height}"
    fix = "Export it again at that size. If it must be scaled: by nearest neighbour, so that classes do not blend."
    same_shape = abs(width * image.height / (height * image.width) - 1) <= SAME_SHAPE and image.orientation == 1
    where = checked.sample.mask.path if checked.sample.mask else ""
    _tell(checked, Problem(where, found, "a mask of its image's size", fix, "mask_size"), rules, mended=same_shape)
    return _scaled(values, image.height, image.width)


def _scaled(values: Values, height: int, width: int) -> Values:
    """By nearest neighbour."""
    rows = (np.arange(height) + 0.5) * values.shape[0] / height
    columns = (np.arange(width) + 0.5) * values.shape[1] / width
    scaled: Values = values[rows.astype(np.int64)[:, None], columns.astype(np.int64)]
    return scaled


def _encoded(checked: Checked, values: Values, rules: Rules) -> bytes | None:
    """The mask with our classes, unless it has none."""
    classes, counts = rules.classes, pixel_counts(values, rules.classes.known)
    where = checked.sample.mask.path if checked.sample.mask else ""
    if unknown := classes.unknown(counts):
        problem = _unknown_values(where, unknown, values.size, classes)
        _tell(checked, problem, rules, mended=True)
        if problem.kind == "blurred_mask":
            values = classes.nearest(values, unknown)
            counts = pixel_counts(values)
    class_counts = classes.class_counts(counts)
    if class_counts.keys() == {IGNORE}:
        problem = Problem(where, "has no pixel that is not ignored", "at least one class in it",
                          "Remove it if the image has not been annotated.", "empty_mask")  # fmt: skip
        _tell(checked, problem, rules, mended=True)
        if checked.told[-1].outcome == "fixed":
            return None
    checked.class_counts = class_counts
    return classes.encoded(values, counts)


def _unknown_values(where: str, unknown: dict[int, int], pixels: int, classes: Classes) -> Problem:
    share = sum(unknown.values()) / pixels
    most = sorted(unknown, key=lambda value: (-unknown[value], value))[:5]
    known = ", ".join(map(spelled, sorted({*classes.values, *classes.ignore_values})[:20]))
    if len(unknown) >= BLURRED_FROM and share <= BLURRED_SHARE:
        found = f"has {len(unknown)} values between those of the classes, in {share:.1%} of its pixels"
        fix = (
            "It was scaled or saved with loss. Export it again, or have each pixel take the nearest: "
            "prepare.problems.blurred_mask: fix; of two classes dataset.source.mask_kind: levels does, too."
        )
        return Problem(where, found, f"declared values: {known}", fix, "blurred_mask")
    found = ", ".join(f"value {spelled(v)} in {unknown[v]:,} pixels ({unknown[v] / pixels:.1%})" for v in most)
    if len(unknown) > len(most):
        found += f" and {len(unknown) - len(most)} more"
    what, listed = 'If that means "not annotated", add', ", ".join(map(spelled, sorted(most)))
    fix = f"{what} `ignore_values: [{listed}]`, else name it as a class: in classes.yaml or dataset of params.yaml."
    return Problem(where, f"has {found}", f"declared values: {known}", fix, "mask_values")
