"""Properties that hold for all parameters, picture sizes and seeds, each checked on a few hundred random draws."""

import tracemalloc
from typing import Any

import albumentations as A
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pspnet.dataset.augmentation import AffineCrop, Augmentation
from tests.raw.rawdata import Pixels, noise

IGNORE = 255
FILL = (1, 2, 3)
COLORS = np.array([[20, 40, 60], [250, 10, 10], [10, 250, 10], [200, 200, 30]], np.uint8)
SIZES = [(40, 60), (64, 48), (200, 150), (20, 20), (20, 200), (1, 50), (50, 1), (1, 1), (2, 300)]


def augmentation(**changes: Any) -> Augmentation:
    settings: dict[str, Any] = {
        "height_px": 48,
        "width_px": 64,
        "scale_min": 0.5,
        "scale_max": 2.0,
        "rotation_degrees": 0.0,
        "flip_probability": 0.5,
        "blur_probability": 0.0,
        "color_jitter": 0.0,
        "fill": FILL,
        "ignore": IGNORE,
    }
    return Augmentation(**{**settings, **changes})


def blocks(height: int, width: int, side: int, seed: int) -> Pixels:
    """Return a mask of square blocks with four classes."""
    classes = np.random.default_rng(seed).integers(0, 4, (height // side + 1, width // side + 1)).astype(np.uint8)
    return classes.repeat(side, axis=0).repeat(side, axis=1)[:height, :width]


@settings(max_examples=400)
@given(
    size=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    crop=st.tuples(st.integers(16, 64), st.integers(16, 64)),
    scales=st.tuples(st.floats(0.05, 4), st.floats(0.05, 4)),
    rotation_degrees=st.sampled_from([0.0, 10.0, 180.0]),
    looks=st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 0.2, 1.0])),
    seed=st.integers(0, 2**31),
)
def test_sizes_are_exact_and_masks_gain_no_value_but_ignore(
    size: tuple[int, int],
    crop: tuple[int, int],
    scales: tuple[float, float],
    rotation_degrees: float,
    looks: tuple[float, float],
    seed: int,
) -> None:
    augment = augmentation(
        height_px=crop[0], width_px=crop[1], scale_min=min(scales), scale_max=max(scales),
        rotation_degrees=rotation_degrees, blur_probability=looks[0], color_jitter=looks[1],
    )  # fmt: skip
    # The colors are only 0 and 254, so that any other value is a blend.
    before = np.where(noise(*size, seed)[..., 0] < 128, 0, 254).astype(np.uint8)
    image, mask = augment.image_and_mask(noise(*size, seed), before, seed)
    assert (image.shape, mask.shape) == ((*crop, 3), crop)
    assert image.dtype == mask.dtype == np.uint8
    assert {*np.unique(mask)} <= {*np.unique(before), IGNORE}
    assert rotation_degrees or (mask != IGNORE).any()


@pytest.mark.parametrize("rotation_degrees", [0.0, 30.0])
@pytest.mark.parametrize("size", SIZES)
def test_only_the_fill_color_and_ignore_are_outside_the_picture(size: tuple[int, int], rotation_degrees: float) -> None:
    """The outermost pixels of the picture blend into the fill, so colors at the edge may be mixed."""
    augment = augmentation(rotation_degrees=rotation_degrees)
    for seed in range(40):
        bright = np.maximum(noise(*size, seed), 10)  # so that no pixel has the color of the padding
        image, mask = augment.image_and_mask(bright, blocks(*size, side=4, seed=seed), seed)
        filled, ignored = (image == FILL).all(axis=2), mask == IGNORE
        assert not (filled & ~ignored).any()
        assert not (~filled & ignored & (eroded(ignored, 2))).any()


def eroded(where: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Return True where all pixels up to `radius` away are True. Pixels outside the crop do not count."""
    square = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    return np.asarray(cv2.erode(where.astype(np.uint8), square, borderType=cv2.BORDER_CONSTANT, borderValue=0) == 1)


def test_pictures_larger_than_the_crop_are_not_padded() -> None:
    augment = augmentation(scale_min=1.0)
    for seed in range(40):
        _, mask = augment.image_and_mask(noise(48, 64, seed), blocks(48, 64, 4, seed), seed)
        assert (mask != IGNORE).all()


def test_an_image_and_its_mask_get_the_same_crop() -> None:
    """If each pixel of an image has the color of its class in the mask, so does each pixel of an unscaled crop."""
    augment = augmentation(scale_min=1.0, scale_max=1.0)
    palette = np.zeros((256, 3), np.uint8)
    palette[:4], palette[IGNORE] = COLORS, FILL
    crops = set()
    for size in SIZES:
        for seed in range(20):
            before = blocks(*size, side=3, seed=seed)
            image, mask = augment.image_and_mask(COLORS[before], before, seed)
            assert np.array_equal(image, palette[mask])
            crops.add(mask.tobytes())
    assert len(crops) > len(SIZES) * 20 / 2  # the crops differ wherever the image is larger than the crop


@pytest.mark.parametrize("rotation_degrees", [0.0, 30.0])
def test_a_scaled_or_rotated_image_still_matches_its_mask(rotation_degrees: float) -> None:
    """Colors are exact two pixels or more from the edge of a block, where interpolation blends nothing."""
    augment = augmentation(rotation_degrees=rotation_degrees)
    compared = 0
    for seed in range(60):
        before = blocks(96, 128, side=16, seed=seed)
        image, mask = augment.image_and_mask(COLORS[before], before, seed)
        inside = uniform(mask, 2) & (mask != IGNORE)
        assert np.array_equal(image[inside], COLORS[mask[inside]])
        compared += int(inside.sum())
    assert compared > 60 * 48 * 64 / 5


def uniform(mask: Pixels, radius: int) -> NDArray[np.bool_]:
    """Return True where all pixels up to `radius` away have the same value."""
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(mask, radius, constant_values=IGNORE), (2 * radius + 1, 2 * radius + 1)
    )
    return np.asarray(windows.min(axis=(2, 3)) == windows.max(axis=(2, 3)))


def test_the_result_depends_only_on_the_seed() -> None:
    one, two = augmentation(color_jitter=0.4), augmentation(color_jitter=0.4)
    image, mask = noise(60, 80), blocks(60, 80, 5, 0)
    first = [one.image_and_mask(image, mask, seed) for seed in range(20)]
    second = [two.image_and_mask(image, mask, seed) for seed in reversed(range(20))][::-1]
    assert all(np.array_equal(left[0], right[0]) for left, right in zip(first, second, strict=True))
    assert all(np.array_equal(left[1], right[1]) for left, right in zip(first, second, strict=True))
    assert len({left[0].tobytes() for left in first}) == 20


def test_an_image_without_a_mask_is_augmented_the_same_way() -> None:
    augment = augmentation(color_jitter=0.4)
    for seed in range(20):
        image = noise(60, 80, seed)
        assert np.array_equal(
            augment.image(image, seed), augment.image_and_mask(image, blocks(60, 80, 5, seed), seed)[0]
        )


def test_the_input_arrays_are_unchanged() -> None:
    image, mask = noise(60, 80), blocks(60, 80, 5, 0)
    before = image.copy(), mask.copy()
    for seed in range(10):
        augmentation(color_jitter=0.4).image_and_mask(image, mask, seed)
    assert np.array_equal(image, before[0]) and np.array_equal(mask, before[1])


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0), (1.0, 50)])
def test_images_are_flipped_with_the_given_probability(probability: float, expected: int) -> None:
    augment = augmentation(height_px=20, width_px=30, scale_min=1.0, scale_max=1.0, flip_probability=probability)
    image = noise(20, 30)
    flipped = [np.array_equal(augment.image(image, seed), image[:, ::-1]) for seed in range(50)]
    kept = [np.array_equal(augment.image(image, seed), image) for seed in range(50)]
    assert (sum(flipped), sum(kept)) == (expected, 50 - expected)


def test_scales_are_within_the_given_range() -> None:
    augment = augmentation(height_px=400, width_px=400, scale_min=0.5, scale_max=1.5)
    heights = []
    for seed in range(200):
        _, mask = augment.image_and_mask(noise(100, 100), np.zeros((100, 100), np.uint8), seed)
        heights.append(int((mask != IGNORE).any(axis=1).sum()))
    assert 49 <= min(heights) < 60
    assert 140 < max(heights) <= 150
    assert np.mean(heights) == pytest.approx(100, abs=8)


def test_only_jitter_changes_colors() -> None:
    image = noise(20, 30)
    plain = {"height_px": 20, "width_px": 30, "scale_min": 1.0, "scale_max": 1.0, "flip_probability": 0.0}
    assert all(np.array_equal(augmentation(**plain).image(image, seed), image) for seed in range(20))
    jittered = [augmentation(**plain, color_jitter=0.3).image(image, seed) for seed in range(20)]
    assert not any(np.array_equal(one, image) for one in jittered)
    gray = np.repeat(image[..., :1], 3, axis=2)
    for seed in range(20):
        shifted = augmentation(**plain, color_jitter=0.3).image(gray, seed).astype(int)
        assert np.abs(shifted - shifted[..., :1]).max() <= 1  # gray stays gray, except for rounding


def places(height: int, width: int) -> Pixels:
    """Return an image whose colors encode the positions of its pixels."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns, rows, columns ^ rows], axis=-1).astype(np.uint8)


def test_an_unscaled_crop_is_an_exact_part_of_the_image_and_every_part_occurs() -> None:
    image = places(53, 70)
    augment = augmentation(scale_min=1.0, scale_max=1.0, flip_probability=0.0)
    found = set()
    for seed in range(300):
        crop, mask = augment.image_and_mask(image, image[..., 2], seed)
        column, row = int(crop[0, 0, 0]), int(crop[0, 0, 1])
        assert np.array_equal(crop, image[row : row + 48, column : column + 64])
        assert np.array_equal(mask, image[row : row + 48, column : column + 64, 2])
        found.add((row, column))
    assert found == {(row, column) for row in range(6) for column in range(7)}


def test_a_mirrored_crop_is_an_exact_part_of_the_mirrored_image() -> None:
    image = places(53, 70)[:, ::-1]
    augment = augmentation(scale_min=1.0, scale_max=1.0, flip_probability=1.0)
    for seed in range(50):
        crop, mask = augment.image_and_mask(image, image[..., 2], seed)
        column, row = int(crop[0, 0, 0]), int(crop[0, 0, 1])
        assert np.array_equal(crop, image[:, ::-1][row : row + 48, column : column + 64])
        assert np.array_equal(mask, image[:, ::-1][row : row + 48, column : column + 64, 2])


def soft_image(height: int, width: int) -> Pixels:
    return np.asarray(cv2.resize(noise(6, 8), (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


@pytest.mark.parametrize("rotation_degrees", [0.0, 10.0, 45.0])
def test_one_warp_equals_scaling_rotating_mirroring_and_cropping_one_after_another(
    rotation_degrees: float,
) -> None:
    """Apply the published steps in turn with the same six random draws. The image is smooth, because each step blurs it
    a little.
    """
    image = soft_image(90, 120)
    mask = (image[..., 0] // 64).astype(np.uint8)
    augment = augmentation(scale_min=0.6, rotation_degrees=rotation_degrees)
    compared = other = 0
    for seed in range(60):
        scale, turned, angle, mirrored, across, down = np.random.default_rng(seed).random(6)
        factor = 0.6 + scale * 1.4
        size = round(120 * factor), round(90 * factor)
        steps = [
            (image, cv2.INTER_LINEAR, cv2.INTER_LINEAR, FILL),
            (mask, cv2.INTER_NEAREST_EXACT, cv2.INTER_NEAREST, (IGNORE,)),
        ]
        crops = []
        for whole, scaling, turning, fill in steps:
            pixels = cv2.resize(whole, size, interpolation=scaling)
            if turned < 0.5:
                middle = (size[0] - 1) / 2, (size[1] - 1) / 2
                matrix = cv2.getRotationMatrix2D(middle, rotation_degrees * (2 * angle - 1), 1)
                pixels = cv2.warpAffine(pixels, matrix, size, flags=turning, borderValue=fill)
            if mirrored < 0.5:
                pixels = pixels[:, ::-1]
            left, top = int(across * (size[0] - 64 + 1)), int(down * (size[1] - 48 + 1))
            crops.append(pixels[top : top + 48, left : left + 64])
        here = augment.image_and_mask(image, mask, seed)
        inside = eroded((crops[1] != IGNORE) & (here[1] != IGNORE), 3)
        assert np.abs(here[0].astype(int) - crops[0])[inside].max() <= 4
        other += int((here[1] != crops[1])[inside].sum())
        compared += int(inside.sum())
    assert compared > 60 * 48 * 64 / 2
    assert other < compared / 50  # a mask that is scaled and then rotated is rounded twice


def test_half_of_the_images_are_rotated_by_up_to_the_given_angle() -> None:
    augment = augmentation(scale_min=1.0, scale_max=1.0, flip_probability=0.0, rotation_degrees=20.0)
    angles = []
    for seed in range(300):
        crop = augment.image(places(110, 130), seed).astype(float)
        # Distances in the image between points 32 pixels apart in the crop.
        right, down = crop[24, 48, :2] - crop[24, 16, :2]
        angles.append(np.degrees(np.arctan2(down, right)))
    turned = [angle for angle in angles if angle]
    assert 0.4 < len(turned) / len(angles) < 0.6
    assert 18 < max(turned) < 22 and -22 < min(turned) < -18
    assert np.mean(turned) == pytest.approx(0, abs=2.5)


@pytest.mark.parametrize("period", [2, 4, 10])
def test_a_fine_pattern_becomes_its_mean_when_scaled_down(period: int) -> None:
    """Without averaging, thin stripes would vanish or become wide."""
    stripes = np.zeros((600, 800), np.uint8)
    stripes[:, ::period] = 255
    augment = augmentation(scale_min=1 / period, scale_max=1 / period)
    for seed in range(5):
        image, mask = augment.image_and_mask(np.repeat(stripes[..., None], 3, axis=2), np.zeros_like(stripes), seed)
        inside = eroded(mask != IGNORE, 1)
        assert inside.any()
        assert np.abs(image[inside].astype(int) - 255 / period).max() <= 2


@pytest.mark.parametrize("scale", [0.5, 0.3, 0.13])
def test_scaling_down_does_not_shift_a_picture(scale: float) -> None:
    augment = augmentation(scale_min=scale, scale_max=scale, flip_probability=0.0)
    image = soft_image(500, 700)
    whole = cv2.resize(image, (round(700 * scale), round(500 * scale)), interpolation=cv2.INTER_AREA).astype(int)
    for seed in range(20):
        across, down = np.random.default_rng(seed).random(6)[4:]
        left, top = int(across * (whole.shape[1] - 64 + 1)), int(down * (whole.shape[0] - 48 + 1))
        difference = augment.image(image, seed) - whole[top : top + 48, left : left + 64]
        assert np.abs(difference)[1:-1, 1:-1].max() <= 3
        assert np.abs(difference.mean()) < 0.2


def test_only_the_shown_part_of_a_large_image_is_read() -> None:
    augment = augmentation(rotation_degrees=10.0)
    image, mask = np.zeros((4000, 4000, 3), np.uint8), np.zeros((4000, 4000), np.uint8)
    augment.image_and_mask(image, mask, 0)  # warm-up
    tracemalloc.start()
    try:
        for seed in range(10):
            augment.image_and_mask(image, mask, seed)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


def test_the_crop_is_blurred_with_the_given_probability_but_the_mask_never_is() -> None:
    image, mask = noise(60, 80), blocks(60, 80, 5, 0)
    blurred = 0
    for seed in range(100):
        plain = augmentation().image_and_mask(image, mask, seed)
        soft = augmentation(blur_probability=1.0).image_and_mask(image, mask, seed)
        assert np.array_equal(soft[0], cv2.GaussianBlur(plain[0], (5, 5), 0))
        assert np.array_equal(soft[1], plain[1])
        blurred += not np.array_equal(augmentation(blur_probability=0.3).image(image, seed), plain[0])
    assert 18 < blurred < 42


def test_brightness_contrast_and_saturation_change_one_after_another() -> None:
    """The expected image is computed in floating point, one change after another, in a range that needs no clipping."""
    image = (100 + noise(48, 64) // 8).astype(np.uint8)
    augment = augmentation(scale_min=1.0, scale_max=1.0, flip_probability=0.0, color_jitter=0.4)
    weights = np.array([0.299, 0.587, 0.114])
    for seed in range(50):
        random = np.random.default_rng(seed)
        random.random(6), random.random()
        brightness, contrast, saturation = 1 + 0.4 * (2 * random.random(3) - 1)
        expected = image * brightness
        expected = (expected @ weights).mean() * (1 - contrast) + expected * contrast
        expected = (expected @ weights)[..., None] * (1 - saturation) + expected * saturation
        assert np.abs(augment.image(image, seed) - expected).max() < 1.6


def test_the_crop_works_as_an_albumentations_transform() -> None:
    composed = A.Compose([AffineCrop(48, 64, 0.5, 2.0, 10.0, 0.5, FILL, IGNORE), A.HorizontalFlip(p=1)], seed=3)
    out = composed(image=noise(60, 80), mask=blocks(60, 80, 5, 0))
    assert (out["image"].shape, out["mask"].shape) == ((48, 64, 3), (48, 64))
