"""Facts that hold whatever the parameters, the picture's size and the seed; a few hundred draws of each."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pspnet.dataset.transforms import Augmentation
from tests.dataset.rawdata import Pixels, noise

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
        "flip_probability": 0.5,
        "color_jitter": 0.0,
        "fill": FILL,
        "ignore": IGNORE,
    }
    return Augmentation(**{**settings, **changes})


def blocks(height: int, width: int, side: int, seed: int) -> Pixels:
    """A mask of square blocks of four classes."""
    classes = np.random.default_rng(seed).integers(0, 4, (height // side + 1, width // side + 1)).astype(np.uint8)
    return classes.repeat(side, axis=0).repeat(side, axis=1)[:height, :width]


@pytest.mark.parametrize("height_px", [16, 47])
@pytest.mark.parametrize(("scale_min", "scale_max"), [(1.0, 1.0), (0.5, 2.0), (0.1, 0.2), (2.0, 3.0)])
@pytest.mark.parametrize("color_jitter", [0.0, 0.2, 1.0])
def test_sizes_are_exact_and_masks_hold_only_what_was_there_or_ignore(
    height_px: int, scale_min: float, scale_max: float, color_jitter: float
) -> None:
    augment = augmentation(
        height_px=height_px, scale_min=scale_min, scale_max=scale_max, color_jitter=color_jitter, width_px=32
    )
    for size in SIZES:
        for seed in range(4):
            # 0 and 254 only, so that any number between them would be a blend
            before = np.where(noise(*size, seed)[..., 0] < 128, 0, 254).astype(np.uint8)
            image, mask = augment.image_and_mask(noise(*size, seed), before, seed)
            assert (image.shape, mask.shape) == ((height_px, 32, 3), (height_px, 32))
            assert image.dtype == mask.dtype == np.uint8
            assert {*np.unique(mask)} <= {*np.unique(before), IGNORE}
            assert augment.image(noise(*size, seed), seed).shape == (height_px, 32, 3)


@pytest.mark.parametrize("size", SIZES)
def test_an_image_is_padded_with_the_fill_colour_exactly_where_its_mask_is_ignored(size: tuple[int, int]) -> None:
    augment = augmentation()
    for seed in range(40):
        bright = np.maximum(noise(*size, seed), 10)  # nowhere the colour of the padding
        image, mask = augment.image_and_mask(bright, blocks(*size, side=4, seed=seed), seed)
        assert np.array_equal((image == FILL).all(axis=2), mask == IGNORE)
        assert (mask != IGNORE).any()


def test_pictures_larger_than_the_crop_are_not_padded() -> None:
    augment = augmentation(scale_min=1.0)
    for seed in range(40):
        _, mask = augment.image_and_mask(noise(48, 64, seed), blocks(48, 64, 4, seed), seed)
        assert (mask != IGNORE).all()


def test_an_image_and_its_mask_go_through_the_same_steps() -> None:
    """Not scaled, every pixel of an image that shows its mask's colours still does."""
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
    assert len(crops) > len(SIZES) * 20 / 2  # another crop each time, where there is room for one


def test_a_scaled_image_still_lies_on_its_mask() -> None:
    """Two pixels from any border of a block interpolation blends nothing, and colours are exact."""
    augment = augmentation()
    compared = 0
    for seed in range(60):
        before = blocks(96, 128, side=16, seed=seed)
        image, mask = augment.image_and_mask(COLORS[before], before, seed)
        inside = uniform(mask, 2) & (mask != IGNORE)
        assert np.array_equal(image[inside], COLORS[mask[inside]])
        compared += int(inside.sum())
    assert compared > 60 * 48 * 64 / 4


def uniform(mask: Pixels, radius: int) -> NDArray[np.bool_]:
    """Where all pixels up to `radius` away are of one value."""
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(mask, radius, constant_values=IGNORE), (2 * radius + 1, 2 * radius + 1)
    )
    return np.asarray(windows.min(axis=(2, 3)) == windows.max(axis=(2, 3)))


def test_the_seed_alone_decides() -> None:
    one, two = augmentation(color_jitter=0.4), augmentation(color_jitter=0.4)
    image, mask = noise(60, 80), blocks(60, 80, 5, 0)
    first = [one.image_and_mask(image, mask, seed) for seed in range(20)]
    second = [two.image_and_mask(image, mask, seed) for seed in reversed(range(20))][::-1]
    assert all(np.array_equal(left[0], right[0]) for left, right in zip(first, second, strict=True))
    assert all(np.array_equal(left[1], right[1]) for left, right in zip(first, second, strict=True))
    assert len({left[0].tobytes() for left in first}) == 20


def test_an_image_alone_is_treated_as_with_a_mask() -> None:
    augment = augmentation(color_jitter=0.4)
    for seed in range(20):
        image = noise(60, 80, seed)
        assert np.array_equal(
            augment.image(image, seed), augment.image_and_mask(image, blocks(60, 80, 5, seed), seed)[0]
        )


def test_the_arrays_handed_in_stay_as_they_are() -> None:
    image, mask = noise(60, 80), blocks(60, 80, 5, 0)
    before = image.copy(), mask.copy()
    for seed in range(10):
        augmentation(color_jitter=0.4).image_and_mask(image, mask, seed)
    assert np.array_equal(image, before[0]) and np.array_equal(mask, before[1])


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0), (1.0, 50)])
def test_flipping_happens_as_often_as_asked(probability: float, expected: int) -> None:
    augment = augmentation(height_px=20, width_px=30, scale_min=1.0, scale_max=1.0, flip_probability=probability)
    image = noise(20, 30)
    flipped = [np.array_equal(augment.image(image, seed), image[:, ::-1]) for seed in range(50)]
    kept = [np.array_equal(augment.image(image, seed), image) for seed in range(50)]
    assert (sum(flipped), sum(kept)) == (expected, 50 - expected)


def test_scales_lie_between_the_two_given() -> None:
    augment = augmentation(height_px=400, width_px=400, scale_min=0.5, scale_max=1.5)
    heights = []
    for seed in range(200):
        _, mask = augment.image_and_mask(noise(100, 100), np.zeros((100, 100), np.uint8), seed)
        heights.append(int((mask != IGNORE).any(axis=1).sum()))
    assert 49 <= min(heights) < 60
    assert 140 < max(heights) <= 150
    assert np.mean(heights) == pytest.approx(100, abs=8)


def test_without_jitter_colours_stay_and_with_it_they_change() -> None:
    image = noise(20, 30)
    plain = {"height_px": 20, "width_px": 30, "scale_min": 1.0, "scale_max": 1.0, "flip_probability": 0.0}
    assert all(np.array_equal(augmentation(**plain).image(image, seed), image) for seed in range(20))
    jittered = [augmentation(**plain, color_jitter=0.3).image(image, seed) for seed in range(20)]
    assert not any(np.array_equal(one, image) for one in jittered)
    gray = np.repeat(image[..., :1], 3, axis=2)
    shifted = augmentation(**plain, color_jitter=0.3).image(gray, 0)
    assert (shifted == shifted[..., :1]).all()  # no hue is added
