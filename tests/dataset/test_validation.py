import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pspnet.dataset.classes import IGNORE, Classes
from pspnet.dataset.images import decode_image, decode_mask
from pspnet.dataset.masks import Numbers
from pspnet.dataset.problems import shortened
from pspnet.dataset.raw import RawFiles
from pspnet.dataset.raw_samples import RawSample
from pspnet.dataset.samples import Split
from pspnet.dataset.validation import Checked, check
from pspnet.errors import Problem
from tests.dataset.rawdata import LIMIT, encoded, noise, write
from tests.dataset.test_images import as_stored

CLASSES = Classes(("back", "front"), ((0, 0, 0), (9, 9, 9)), {0: 0, 5: 1}, (255,))
IMAGE = noise(2, 3)
MASK = np.array([[0, 5, 5], [255, 0, 5]], np.uint8)


def checked(
    raw: Path, image: bytes, mask: bytes | None = None, split: Split = "train", max_pixels: int = LIMIT
) -> Checked | Problem:
    write(raw / "i.png", image)
    if mask is not None:
        write(raw / "m.png", mask)
    sample = RawSample("i", "i.png", None if mask is None else Numbers("m.png"), "g", None)
    return check(sample, split, files=RawFiles(raw), classes=CLASSES, max_pixels=max_pixels)


def sound(result: Checked | Problem) -> Checked:
    assert isinstance(result, Checked), result
    return result


def refused(result: Checked | Problem) -> Problem:
    assert isinstance(result, Problem), result
    return result


def test_a_sound_pair_becomes_a_record(tmp_path: Path) -> None:
    image = encoded(IMAGE)
    result = sound(checked(tmp_path, image, encoded(MASK)))
    record = result.record
    assert (record.id, record.split, record.group, record.source) == ("i", "train", "g", "i.png")
    assert (record.image, record.height, record.width) == (image, 2, 3)
    assert record.mask is not None and decode_mask(record.mask).tolist() == [[0, 1, 1], [IGNORE, 0, 1]]
    assert result.class_counts is not None
    assert result.class_counts[[0, 1, IGNORE]].tolist() == [2, 3, 1]


def test_an_image_without_a_mask_has_none(tmp_path: Path) -> None:
    result = sound(checked(tmp_path, encoded(IMAGE)))
    assert result.record.mask is None and result.class_counts is None


def test_the_mask_of_an_image_declared_unlabeled_is_left_out(tmp_path: Path) -> None:
    assert sound(checked(tmp_path, encoded(IMAGE), encoded(MASK), "unlabeled")).record.mask is None


def test_a_broken_mask_is_refused_by_its_own_name(tmp_path: Path) -> None:
    problem = refused(checked(tmp_path, encoded(IMAGE), b"GIF89a and then nothing"))
    assert problem.where == "m.png"


def test_an_undeclared_value_is_told_with_its_pixels_and_what_to_write(tmp_path: Path) -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask.flat[:1234] = 77
    problem = refused(checked(tmp_path, encoded(noise(100, 100)), encoded(mask)))
    assert problem.found == "has value 77 in 1,234 pixels (12.3%)"
    assert "ignore_values: [77]" in problem.fix
    assert problem.expected == "declared values: 0, 5, 255"


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    problem = refused(checked(tmp_path, encoded(IMAGE), encoded(MASK[:, :2])))
    assert problem.found == "has 2 x 2 pixels, its image 3 x 2"


def both(raw: Path, orientation: int, mask: NDArray[Any]) -> Checked | Problem:
    return checked(raw, encoded(as_stored(IMAGE, orientation), orientation=orientation), encoded(mask))


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_drawn_before_exif_turned_the_image_is_turned_likewise(tmp_path: Path, orientation: int) -> None:
    record = sound(both(tmp_path, orientation, as_stored(MASK, orientation))).record
    assert np.array_equal(decode_image(record.image), IMAGE)
    assert record.mask is not None and np.array_equal(decode_mask(record.mask), CLASSES.index_of(MASK))


def test_a_mask_drawn_on_the_upright_image_stays(tmp_path: Path) -> None:
    record = sound(both(tmp_path, 6, MASK)).record
    assert record.mask is not None and np.array_equal(decode_mask(record.mask), CLASSES.index_of(MASK))


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_a_mask_whose_size_does_not_say_how_it_lies_is_refused(tmp_path: Path, orientation: int) -> None:
    assert "both before and after EXIF" in refused(both(tmp_path, orientation, MASK)).found


def test_a_broken_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "i.png").symlink_to(tmp_path / "nowhere")
    sample = RawSample("i", "i.png", None, "g", None)
    problem = refused(check(sample, "train", files=RawFiles(tmp_path), classes=CLASSES, max_pixels=LIMIT))
    assert "broken link" in problem.found


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "i.png")
    sample = RawSample("i", "i.png", None, "g", None)
    refused(check(sample, "train", files=RawFiles(tmp_path), classes=CLASSES, max_pixels=LIMIT))


def test_a_file_too_big_for_any_allowed_image_is_not_even_read(tmp_path: Path) -> None:
    with (tmp_path / "i.png").open("wb") as file:
        file.truncate(2**24 + 8 * 100 + 1)
    sample = RawSample("i", "i.png", None, "g", None)
    problem = refused(check(sample, "train", files=RawFiles(tmp_path), classes=CLASSES, max_pixels=100))
    assert problem.found.startswith("has 17 MB")


def test_up_to_twenty_problems_are_all_shown() -> None:
    problems = [Problem(f"{number}", "is bad", "good") for number in range(20)]
    assert shortened(problems) == problems


def test_more_than_twenty_problems_are_counted_by_kind_and_each_kind_is_explained_once() -> None:
    problems = [Problem(f"{n}", "is bad", "good" if n % 3 else "fair", "Mend it.") for n in range(30)]
    shown = shortened(problems)
    assert shown[:2] == problems[:2]
    assert shown[2:20] == [Problem(f"{n}", "is bad") for n in range(2, 20)]
    assert [problem.found for problem in shown[20:]] == ["and 10 more. In all: 20 x expected good; 10 x expected fair"]
