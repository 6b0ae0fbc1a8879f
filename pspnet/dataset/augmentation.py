"""Random augmentation of an image and, if it has one, its mask. The only module that uses albumentations."""

import math
from typing import Any, Protocol

import albumentations as A
import cv2
import numpy as np
from albumentations.core.type_definitions import Targets
from numpy.typing import NDArray

Pixels = NDArray[Any]  # these are uint8, but OpenCV's return types do not say so
Matrix = NDArray[np.float64]

BLUR_PX = 5  # side of the Gaussian kernel, as published
GRAY = np.array([0.299, 0.587, 0.114])  # weights of red, green and blue

# Loaders already have a process for each core. This is set at import because every process that augments imports this
# module. Otherwise a process that was not forked would start a thread for each core again.
cv2.setNumThreads(0)


class AffineCrop(A.DualTransform):
    """Scale, rotate, mirror and crop (or pad) in one affine warp from the image into the crop.

    Pixels are interpolated once, and only for the area that the crop shows. The scale is drawn uniformly. Half of the
    images are rotated by a uniformly drawn angle, as published. Outside the image, the crop shows the fill color, and
    the outermost pixels blend into it.
    """

    _targets = (Targets.IMAGE, Targets.MASK)

    def __init__(
        self,
        height_px: int,
        width_px: int,
        scale_min: float,
        scale_max: float,
        rotation_degrees: float,
        flip_probability: float,
        fill: tuple[int, int, int],
        ignore: int,
    ) -> None:
        super().__init__(p=1)
        self.height_px, self.width_px = height_px, width_px
        self.scale_min, self.scale_max = scale_min, scale_max
        self.rotation_degrees, self.flip_probability = rotation_degrees, flip_probability
        self.fill, self.ignore = fill, ignore

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        height, width = params["shape"][:2]
        scale, turned, angle, mirrored, across, down = self.random_generator.random(6)
        factor = self.scale_min + scale * (self.scale_max - self.scale_min)
        radians = math.radians(self.rotation_degrees * (2 * angle - 1)) if turned < 0.5 else 0.0
        scaled_height, scaled_width = max(1, round(height * factor)), max(1, round(width * factor))
        return {
            "crop_to_image": _crop_to_image(
                left=_place(scaled_width, self.width_px, across),
                top=_place(scaled_height, self.height_px, down),
                middle=(scaled_width / 2, scaled_height / 2),
                steps=(width / scaled_width, height / scaled_height),
                radians=radians,
                mirrored=mirrored < self.flip_probability,
            ),
            # Bilinear interpolation reads four pixels. At half size or less, it would skip pixels and turn fine
            # patterns into coarse ones, so blocks of `shrink` x `shrink` pixels are averaged first.
            "shrink": max(1, int(min(width / scaled_width, height / scaled_height))),
        }

    def apply(self, img: Pixels, crop_to_image: Matrix, shrink: int, **_: Any) -> Pixels:
        size = self.width_px, self.height_px
        shown, crop_to_shown = _shown(img, crop_to_image, size, margin_px=2 * shrink)
        if shrink > 1:
            height, width = shown.shape[:2]
            small = max(1, round(width / shrink)), max(1, round(height / shrink))
            shown = cv2.resize(shown, small, interpolation=cv2.INTER_AREA)
            for row, factor in enumerate((small[0] / width, small[1] / height)):
                crop_to_shown[row] *= factor
                crop_to_shown[row, 2] += (factor - 1) / 2  # the origin is the center of the first pixel
        # OpenCV warps four channels in half the time it takes for three.
        warped = _warped(cv2.cvtColor(shown, cv2.COLOR_RGB2RGBA), crop_to_shown, size, cv2.INTER_LINEAR, self.fill)
        return cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB)

    def apply_to_mask(self, mask: Pixels, crop_to_image: Matrix, **_: Any) -> Pixels:
        size = self.width_px, self.height_px
        shown, crop_to_shown = _shown(mask, crop_to_image, size, margin_px=2)
        return _warped(shown, crop_to_shown, size, cv2.INTER_NEAREST, (self.ignore,))


def _place(scaled_px: int, crop_px: int, drawn: float) -> int:
    """Return where the crop starts in the image. A smaller image is centered in the crop."""
    free = scaled_px - crop_px
    return int(drawn * (free + 1)) if free >= 0 else -(-free // 2)


def _crop_to_image(
    left: int, top: int, middle: tuple[float, float], steps: tuple[float, float], radians: float, mirrored: bool
) -> Matrix:
    """Return the matrix that maps crop pixels (x, y) to points in the image, via the scaled image rotated about its
    center.

    Without scaling or rotation, all numbers are integers or halves, and the crop is exact.
    """
    cosine, sine = math.cos(radians), math.sin(radians)
    direction = -1 if mirrored else 1
    x, y = direction * (left + 0.5 - middle[0]), top + 0.5 - middle[1]
    return np.array(
        [
            [direction * cosine * steps[0], -sine * steps[0], (cosine * x - sine * y + middle[0]) * steps[0] - 0.5],
            [direction * sine * steps[1], cosine * steps[1], (sine * x + cosine * y + middle[1]) * steps[1] - 0.5],
        ]
    )


def _shown(pixels: Pixels, crop_to_image: Matrix, size: tuple[int, int], margin_px: int) -> tuple[Pixels, Matrix]:
    """Return the part of the image that the crop shows, and the matrix from the crop to that part."""
    last = np.array(size) - 1
    moved = crop_to_image[:, :2] * last  # offset from the first pixel to the last along each side of the crop
    start = crop_to_image[:, 2] + np.minimum(moved, 0).sum(axis=1)
    end = crop_to_image[:, 2] + np.maximum(moved, 0).sum(axis=1)
    height, width = pixels.shape[:2]
    left, right = _within(start[0] - margin_px, end[0] + margin_px, width)
    top, bottom = _within(start[1] - margin_px, end[1] + margin_px, height)
    return pixels[top:bottom, left:right], crop_to_image - [[0, 0, left], [0, 0, top]]


def _within(start: float, end: float, length: int) -> tuple[int, int]:
    """Return the range of pixels from `start` to `end`. It has at least one pixel, even if the crop shows none."""
    first = min(max(0, math.floor(start)), length - 1)
    return first, max(first + 1, min(length, math.ceil(end) + 1))


def _warped(
    pixels: Pixels, crop_to_pixels: Matrix, size: tuple[int, int], interpolation: int, fill: tuple[int, ...]
) -> Pixels:
    flags = interpolation | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(pixels, crop_to_pixels, size, flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=fill)


class AugmentationParams(Protocol):
    """The keys of `pretrain` and `finetune` that control augmentation."""

    @property
    def scale_min(self) -> float: ...
    @property
    def scale_max(self) -> float: ...
    @property
    def rotation_degrees(self) -> float: ...
    @property
    def flip_probability(self) -> float: ...
    @property
    def blur_probability(self) -> float: ...
    @property
    def color_jitter(self) -> float: ...


class Augmentation:
    """Scale, rotate, crop (or pad), mirror, blur and recolor. All randomness comes from the seed of each call."""

    def __init__(
        self,
        height_px: int,
        width_px: int,
        scale_min: float,
        scale_max: float,
        rotation_degrees: float,
        flip_probability: float,
        blur_probability: float,
        color_jitter: float,
        fill: tuple[int, int, int],
        ignore: int,
    ) -> None:
        self._crop = AffineCrop(
            height_px, width_px, scale_min, scale_max, rotation_degrees, flip_probability, fill, ignore
        )
        self._blur_probability, self._color_jitter = blur_probability, color_jitter

    @classmethod
    def from_params(
        cls, params: "AugmentationParams", height_px: int, width_px: int, fill: tuple[int, int, int], ignore: int
    ) -> "Augmentation":
        return cls(
            height_px=height_px,
            width_px=width_px,
            scale_min=params.scale_min,
            scale_max=params.scale_max,
            rotation_degrees=params.rotation_degrees,
            flip_probability=params.flip_probability,
            blur_probability=params.blur_probability,
            color_jitter=params.color_jitter,
            fill=fill,
            ignore=ignore,
        )

    def image(self, image: Pixels, seed: int) -> Pixels:
        self._crop.set_random_seed(seed)
        return self._blur_and_color(self._crop(image=image)["image"])

    def image_and_mask(self, image: Pixels, mask: Pixels, seed: int) -> tuple[Pixels, Pixels]:
        self._crop.set_random_seed(seed)
        both = self._crop(image=image, mask=mask)
        return self._blur_and_color(both["image"]), both["mask"]

    def crop(self, image: Pixels, seed: int) -> tuple[Pixels, Pixels]:
        """The crop with its own colors, and which of its pixels show the image: (H, W, 3), (H, W) bool."""
        ignore = self._crop.ignore
        self._crop.set_random_seed(seed)
        both = self._crop(image=image, mask=np.full(image.shape[:2], ignore ^ 1, np.uint8))
        return both["image"], both["mask"] != ignore

    def _blur_and_color(self, image: Pixels) -> Pixels:
        """Blur and recolor the crop. These steps do not move pixels, and the crop is smaller than the image."""
        blurred, *drawn = self._crop.random_generator.random(4)
        if blurred < self._blur_probability:
            image = cv2.GaussianBlur(image, (BLUR_PX, BLUR_PX), 0)
        if self._color_jitter:
            image = cv2.transform(image, color_matrix(image, *(1 + self._color_jitter * (2 * d - 1) for d in drawn)))
        return image


def color_matrix(image: Pixels, brightness: float, contrast: float, saturation: float) -> Matrix:
    """Return a matrix for brightness, contrast and saturation together, so nothing is rounded in between. They scale a
    color, its distance to the image's mean gray, and its distance to its own gray, so their order does not matter.
    """
    gain = brightness * contrast
    offset = brightness * (1 - contrast) * (GRAY @ cv2.mean(image)[:3])
    return np.column_stack([gain * (saturation * np.eye(3) + (1 - saturation) * GRAY), np.full(3, offset)])
