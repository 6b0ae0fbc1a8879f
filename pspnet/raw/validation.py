"""Check one image and its mask, which are then accepted, repaired, or left out with a reason."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from pspnet.config.prepare import PrepareParams, ProblemsParams
from pspnet.errors import Problem
from pspnet.raw.classes import IGNORE, Classes, pixel_counts
from pspnet.raw.files import RawFiles
from pspnet.raw.images import GLANCE_PX, TURNS, Refused, StoredImage, read_image
from pspnet.raw.masks import Values, spelled
from pspnet.raw.problems import KEPT, Verdict, judge
from pspnet.raw.sample import RawSample

BYTES_PER_PIXEL = 8  # for uncompressed 16-bit RGBA
METADATA_BYTES = 2**24
BLURRED_FROM = 8  # different unknown values in a blurred mask
BLURRED_SHARE = 0.3  # largest share of unknown pixels in a blurred mask; with more, the class values must be wrong
COPY_AGAIN = "Copy or export it again, or remove it."
SAME_SHAPE = 0.01  # largest relative difference in aspect ratio between a mask and its image

SUFFIXES_OF = {
    "JPEG": (".jpg", ".jpeg"), "MPO": (".jpg", ".jpeg"), "PNG": (".png",), "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"), "BMP": (".bmp",), "GIF": (".gif",),
}  # fmt: skip


@dataclass(frozen=True)
class Rules:
    classes: Classes
    policies: ProblemsParams
    max_pixels: int

    @classmethod
    def of(cls, classes: Classes, prepare: PrepareParams) -> Self:
        return cls(classes, prepare.problems, round(prepare.max_megapixels * 10**6))

    @property
    def max_bytes(self) -> int:
        return max_bytes(self.max_pixels)


@dataclass
class CheckedSample:
    """A checked sample, repaired where the policies allow it. A sample without an image is not used."""

    sample: RawSample
    verdicts: list[Verdict] = field(default_factory=list)
    image: bytes | None = None
    mask: bytes | None = None
    height: int = 0
    width: int = 0
    glance: bytes = bytes(GLANCE_PX**2)
    channel_sums: list[int] = field(default_factory=lambda: [0] * 7)
    class_counts: dict[int, int] = field(default_factory=dict)  # pixels by mask value


def max_bytes(max_pixels: int) -> int:
    """Return the maximum file size in bytes of an image with this many pixels. A larger file is never read."""
    return max_pixels * BYTES_PER_PIXEL + METADATA_BYTES


class _LeftOut(Exception):
    """The sample is not used, and a verdict says why."""


def check(sample: RawSample, *, files: RawFiles, rules: Rules) -> CheckedSample:
    checked = CheckedSample(sample)
    try:
        with _named(checked, sample.image, rules):
            image = read_image(files.read(sample.image, rules.max_bytes), rules.max_pixels)
        _check_suffix(checked, image, rules)
        if sample.mask is None:
            expected = "a mask for every image (prepare.problems.image_without_mask)"
            problem = Problem(sample.image, "has no mask", expected, kind="image_without_mask")
            if rules.policies.image_without_mask != "allow":  # an image without a mask is not a problem if allowed
                _judge(checked, problem, rules)
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


def _judge(checked: CheckedSample, problem: Problem, rules: Rules, mendable: bool = False) -> None:
    """Add the verdict, and raise _LeftOut unless the problem is fixed or allowed."""
    verdict = judge(problem, rules.policies, mendable)
    checked.verdicts.append(verdict)
    if verdict.outcome not in KEPT:
        raise _LeftOut


@contextmanager
def _named(checked: CheckedSample, where: str, rules: Rules) -> Iterator[None]:
    try:
        yield
    except Refused as refused:
        problem = refused.problem_at(where)
        _judge(checked, replace(problem, fix=problem.fix or COPY_AGAIN), rules)
    except MemoryError:
        raise MemoryError(where) from None


def _check_suffix(checked: CheckedSample, image: StoredImage, rules: Rules) -> None:
    suffixes = SUFFIXES_OF[image.format]
    if not checked.sample.image.lower().endswith(suffixes):
        expected = f"a name ending in {suffixes[0]}"
        problem = Problem(checked.sample.image, f"is actually a {image.format}", expected,
                          "Rename it to match its content, which is what is read.", "wrong_suffix")  # fmt: skip
        _judge(checked, problem, rules)


def _fitted(checked: CheckedSample, values: Values, image: StoredImage, rules: Rules) -> Values:
    """Return the mask, fitted to the upright image. It may have been drawn on the stored image, before EXIF
    rotation.
    """
    height, width = values.shape
    upright, stored = (image.height, image.width), (image.height, image.width)
    if image.orientation >= 5:
        stored = stored[::-1]
    if values.shape == upright == stored and image.orientation != 1:
        found = f"has a size that fits its image both before and after EXIF orientation {image.orientation}"
        fix = "Save the image upright, without an EXIF orientation."
        raise Refused(found, "a mask that fits its image in only one way", fix, "mask_size")
    if values.shape == upright:
        return values
    if values.shape == stored:
        return TURNS[image.orientation](values)
    found = f"has {width} x {height} pixels, but its image {checked.sample.image} has {image.width} x {image.height}"
    fix = "Export it again at that size. If you must scale it, use nearest neighbor, so that classes do not blend."
    same_shape = abs(width * image.height / (height * image.width) - 1) <= SAME_SHAPE and image.orientation == 1
    where = checked.sample.mask.path if checked.sample.mask else ""
    _judge(checked, Problem(where, found, "the same size as its image", fix, "mask_size"), rules, mendable=same_shape)
    return _scaled(values, image.height, image.width)


def _scaled(values: Values, height: int, width: int) -> Values:
    """Return the mask, scaled by nearest neighbor."""
    rows = (np.arange(height) + 0.5) * values.shape[0] / height
    columns = (np.arange(width) + 0.5) * values.shape[1] / width
    scaled: Values = values[rows.astype(np.int64)[:, None], columns.astype(np.int64)]
    return scaled


def _encoded(checked: CheckedSample, values: Values, rules: Rules) -> bytes | None:
    """Return the encoded mask of class numbers, or None for an empty mask that is dropped."""
    classes, counts = rules.classes, pixel_counts(values, rules.classes.known)
    where = checked.sample.mask.path if checked.sample.mask else ""
    if unknown := classes.unknown(counts):
        problem = _unknown_values(where, unknown, values.size, classes)
        _judge(checked, problem, rules, mendable=True)
        if problem.kind == "blurred_mask":
            values = classes.nearest(values, unknown)
            counts = pixel_counts(values)
    class_counts = classes.class_counts(counts)
    if class_counts.keys() == {IGNORE}:
        problem = Problem(where, "has only ignored pixels", "at least one class",
                          "Remove it if the image has not been annotated.", "empty_mask")  # fmt: skip
        _judge(checked, problem, rules, mendable=True)
        if checked.verdicts[-1].outcome == "fixed":
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
            "It was scaled or lossily compressed. Export it again, or let each pixel take the nearest value "
            "(prepare.problems.blurred_mask: fix). With only two classes, dataset.source.mask_kind: levels also works."
        )
        return Problem(where, found, f"declared values: {known}", fix, "blurred_mask")
    found = ", ".join(f"value {spelled(v)} in {unknown[v]:,} pixels ({unknown[v] / pixels:.1%})" for v in most)
    if len(unknown) > len(most):
        found += f" and {len(unknown) - len(most)} more"
    advice, listed = 'If that means "not annotated", add', ", ".join(map(spelled, sorted(most)))
    fix = f"{advice} `ignore_values: [{listed}]`, else name it as a class, in classes.yaml or dataset in params.yaml."
    return Problem(where, f"has {found}", f"declared values: {known}", fix, "mask_values")
