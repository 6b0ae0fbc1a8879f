from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pspnet.raw.files import RawFiles
from pspnet.raw.images import Refused
from pspnet.raw.masks import (
    COLOR,
    Colors,
    Instances,
    Levels,
    Numbers,
    RawMask,
    color_value,
    colors_in,
    levels_in,
    numbers_in,
    spelled,
)
from tests.raw.rawdata import LIMIT, encoded, write
from tests.raw.test_images import GRAY, gray_png

RED, GREEN = (255, 0, 0), (0, 128, 0)
PICTURE = np.array([[RED, GREEN, (0, 0, 1)]], np.uint8)
VALUES = [[COLOR + 0xFF0000, COLOR + 0x008000, COLOR + 1]]


def test_a_palette_mask_is_read_as_its_indices() -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette([0, 0, 0, 255, 0, 0, 9, 9, 9])
    assert numbers_in(encoded(image), LIMIT).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_small_palette_mask_is_read_as_its_indices(bits: int) -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([0, 0, 0, 255, 0, 0])
    assert numbers_in(encoded(image, bits=bits), LIMIT).tolist() == [[0, 1]]


def test_a_1_bit_mask_is_read_as_0_and_1() -> None:
    values = numbers_in(encoded(Image.fromarray(np.array([[False, True]]))), LIMIT)
    assert values.tolist() == [[0, 1]] and values.dtype == np.uint8


@pytest.mark.parametrize("bits", [2, 4])
def test_a_2_or_4_bit_gray_mask_is_read_as_the_values_in_the_file(bits: int) -> None:
    assert numbers_in(gray_png([0, 1, 2, 3], bits), LIMIT).tolist() == [[0, 1, 2, 3]]


def test_a_16_bit_mask_keeps_its_values() -> None:
    assert numbers_in(encoded(np.array([[7, 1000, 65535]], np.uint16)), LIMIT).tolist() == [[7, 1000, 65535]]


def test_a_color_mask_with_equal_channels_is_read_as_one_channel() -> None:
    assert np.array_equal(numbers_in(encoded(np.stack([GRAY] * 3, axis=-1)), LIMIT), GRAY)


def test_an_opaque_alpha_channel_in_a_mask_is_dropped() -> None:
    opaque = np.stack([GRAY] * 3 + [np.full_like(GRAY, 255)], axis=-1)
    assert np.array_equal(numbers_in(encoded(opaque), LIMIT), GRAY)


def test_a_partly_transparent_mask_is_refused() -> None:
    transparent = np.stack([GRAY] * 3 + [np.array([[255, 254, 255]] * 2, np.uint8)], axis=-1)
    with pytest.raises(Refused, match="partly transparent"):
        numbers_in(encoded(transparent), LIMIT)


def test_a_color_mask_is_refused_with_its_number_of_colors() -> None:
    colors = np.array([[[255, 0, 0], [0, 255, 0], [255, 0, 0]]], np.uint8)
    with pytest.raises(Refused, match=r"a color picture \(2 colors\)"):
        numbers_in(encoded(colors), LIMIT)


def test_a_jpeg_mask_is_refused() -> None:
    with pytest.raises(Refused, match="is a JPEG"):
        numbers_in(encoded(np.zeros((8, 8), np.uint8), "JPEG"), LIMIT)


def test_the_number_for_a_color_differs_from_any_gray_value() -> None:
    assert color_value("#DC143c") == COLOR + 0xDC143C > 65535
    assert spelled(color_value("#DC143c")) == "'#dc143c'"
    assert spelled(7) == "7"


def test_colors_are_read_from_files_of_every_kind() -> None:
    opaque = np.dstack([PICTURE, np.full((1, 3), 255, np.uint8)])
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    palette.putpalette([*RED, *GREEN, 0, 0, 1])
    for image in (PICTURE, opaque, palette):
        assert colors_in(encoded(image), LIMIT).tolist() == VALUES
    assert colors_in(encoded(PICTURE, "BMP"), LIMIT).tolist() == VALUES
    assert colors_in(encoded(np.array([[7]], np.uint8)), LIMIT).tolist() == [[COLOR + 0x070707]]
    assert colors_in(encoded(Image.fromarray(np.array([[False, True]]))), LIMIT).tolist() == [[COLOR, COLOR + 0xFFFFFF]]


def test_a_color_mask_is_rotated_with_its_file() -> None:
    assert colors_in(encoded(PICTURE, orientation=6), LIMIT).tolist() == [[value] for value in VALUES[0]]


@pytest.mark.parametrize(
    ("image", "kind", "reported"),
    [
        (PICTURE, "JPEG", "is a JPEG"),
        (np.dstack([PICTURE, np.array([[255, 0, 255]], np.uint8)]), "PNG", "is partly transparent"),
        (np.array([[7, 1000]], np.uint16), "PNG", r"has 16-bit I;16 colors"),
    ],
    ids=["lossy", "transparent", "16 bits"],
)
def test_a_file_without_exact_colors_is_refused(image: np.ndarray[tuple[int, ...]], kind: str, reported: str) -> None:
    with pytest.raises(Refused, match=reported):
        colors_in(encoded(image, kind), LIMIT)


def test_levels_are_the_brightness_at_the_bit_depth_of_the_file() -> None:
    assert levels_in(encoded(GRAY), LIMIT).tolist() == GRAY.tolist()
    assert levels_in(encoded(np.array([[7, 1000, 65535]], np.uint16)), LIMIT).tolist() == [[7, 1000, 65535]]
    assert levels_in(encoded(Image.fromarray(np.array([[False, True]]))), LIMIT).tolist() == [[0, 255]]
    lossy = levels_in(encoded(np.kron(np.array([[0, 255]], np.uint8), np.ones((16, 16), np.uint8)), "JPEG"), LIMIT)
    assert ((lossy >= 128) == np.repeat([[False, True]], 16, axis=1).repeat(16, axis=0)).all()


@pytest.fixture
def files(tmp_path: Path) -> RawFiles:
    write(tmp_path / "numbers.png", encoded(np.array([[0, 1, 2]], np.uint8)))
    write(tmp_path / "colors.png", encoded(PICTURE))
    write(tmp_path / "left.png", encoded(np.array([[127, 128, 0]], np.uint8)))
    write(tmp_path / "right.png", encoded(np.array([[0, 0, 255]], np.uint8)))
    write(tmp_path / "larger.png", encoded(np.zeros((2, 3), np.uint8)))
    return RawFiles(tmp_path)


def test_each_kind_of_mask_is_read_as_its_numbers(files: RawFiles) -> None:
    kinds: dict[RawMask, list[list[int]]] = {
        Numbers("numbers.png"): [[0, 1, 2]],
        Colors("colors.png"): VALUES,
        Levels("left.png", 128): [[0, 1, 0]],
        Levels("left.png", 100): [[1, 1, 0]],
        Instances(("left.png", "right.png"), 128): [[0, 1, 1]],
    }
    for mask, expected in kinds.items():
        assert mask.values(files, LIMIT, LIMIT).tolist() == expected


def test_object_masks_of_different_sizes_are_refused(files: RawFiles) -> None:
    with pytest.raises(Refused, match=r"larger\.png differs from left\.png"):
        Instances(("left.png", "larger.png"), 128).values(files, LIMIT, LIMIT)
