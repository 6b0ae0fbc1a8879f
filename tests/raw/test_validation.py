import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pspnet.config.prepare import ProblemsParams
from pspnet.dataset.store.pixels import decode_image, decode_mask
from pspnet.errors import Problem
from pspnet.raw.classes import IGNORE, Classes
from pspnet.raw.files import RawFiles
from pspnet.raw.masks import COLOR, Colors, Numbers
from pspnet.raw.problems import shortened
from pspnet.raw.sample import RawSample
from pspnet.raw.validation import CheckedSample, check
from tests.parameters import ROOT
from tests.raw.rawdata import LIMIT, encoded, left_out, noise, rules, write
from tests.raw.test_images import as_stored

CLASSES = Classes(("back", "front"), ((0, 0, 0), (9, 9, 9)), {0: 0, 5: 1}, (255,))
IMAGE = noise(2, 3)
MASK = np.array([[0, 5, 5], [255, 0, 5]], np.uint8)


def checked(
    raw: Path, image: bytes, mask: bytes | None = None, name: str = "i.png", max_pixels: int = LIMIT, **policies: str
) -> CheckedSample:
    write(raw / name, image)
    if mask is not None:
        write(raw / "m.png", mask)
    sample = RawSample("i", name, None if mask is None else Numbers("m.png"), "g", None)
    return check(sample, files=RawFiles(raw), rules=rules(CLASSES, max_pixels, **policies))


def mask_of(result: CheckedSample) -> Any:
    assert result.mask is not None, result.verdicts
    return decode_mask(result.mask)


def outcomes(result: CheckedSample) -> list[tuple[str, str]]:
    return [(one.problem.kind, one.outcome) for one in result.verdicts]


def test_a_sound_pair_is_used_unchanged(tmp_path: Path) -> None:
    image = encoded(IMAGE)
    result = checked(tmp_path, image, encoded(MASK))
    assert (result.image, result.height, result.width, result.verdicts) == (image, 2, 3, [])
    assert mask_of(result).tolist() == [[0, 1, 1], [IGNORE, 0, 1]]
    assert result.class_counts == {0: 2, 1: 3, IGNORE: 1}
    middle = IMAGE[1, 1].astype(int)  # in an image this small, one pixel is sampled
    assert result.channel_sums == [1, *middle, *middle**2]


def test_an_image_without_a_mask_is_used_without_one(tmp_path: Path) -> None:
    result = checked(tmp_path, encoded(IMAGE))
    assert (result.mask, result.class_counts, result.verdicts) == (None, {}, [])


@pytest.mark.parametrize("policy", ["error", "quarantine"])
def test_an_image_without_a_mask_can_be_a_problem(tmp_path: Path, policy: str) -> None:
    result = checked(tmp_path, encoded(IMAGE), image_without_mask=policy)
    assert left_out(result).kind == "image_without_mask"
    assert result.verdicts[-1].outcome == {"error": "error", "quarantine": "quarantined"}[policy]


@pytest.mark.parametrize("name", ["i.jpg", "i.tif", "i"])
def test_the_content_of_a_file_counts_and_not_its_name(tmp_path: Path, name: str) -> None:
    result = checked(tmp_path, encoded(IMAGE), name=name)
    assert result.image == encoded(IMAGE)
    assert outcomes(result) == [("wrong_suffix", "allowed")]
    assert result.verdicts[0].problem.found == "is actually a PNG"
    assert left_out(checked(tmp_path, encoded(IMAGE), name=name, wrong_suffix="quarantine")).where == name


def test_a_broken_mask_is_reported_by_its_own_path(tmp_path: Path) -> None:
    problem = left_out(checked(tmp_path, encoded(IMAGE), b"GIF89a and then nothing"))
    assert problem.where == "m.png"


def test_an_undeclared_value_is_reported_with_its_pixels_and_a_fix(tmp_path: Path) -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask.flat[:1234] = 77
    problem = left_out(checked(tmp_path, encoded(noise(100, 100)), encoded(mask)))
    assert problem.found == "has value 77 in 1,234 pixels (12.3%)"
    assert "ignore_values: [77]" in problem.fix
    assert problem.expected == "declared values: 0, 5, 255"


def test_a_mask_of_a_different_size_is_refused(tmp_path: Path) -> None:
    problem = left_out(checked(tmp_path, encoded(IMAGE), encoded(MASK[:, :2])))
    assert problem.found == "has 2 x 2 pixels, but its image i.png has 3 x 2"


def both(raw: Path, orientation: int, mask: NDArray[Any]) -> CheckedSample:
    return checked(raw, encoded(as_stored(IMAGE, orientation), orientation=orientation), encoded(mask))


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_drawn_on_the_stored_image_is_rotated_with_it(tmp_path: Path, orientation: int) -> None:
    result = both(tmp_path, orientation, as_stored(MASK, orientation))
    assert result.image is not None and np.array_equal(decode_image(result.image), IMAGE)
    assert np.array_equal(mask_of(result), CLASSES.index_of(MASK))


def test_a_mask_drawn_on_the_upright_image_is_unchanged(tmp_path: Path) -> None:
    assert np.array_equal(mask_of(both(tmp_path, 6, MASK)), CLASSES.index_of(MASK))


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_a_mask_that_fits_both_upright_and_stored_is_refused(tmp_path: Path, orientation: int) -> None:
    assert "both before and after EXIF" in left_out(both(tmp_path, orientation, MASK)).found


def test_a_mask_of_a_different_size_can_be_scaled_by_nearest_neighbor(tmp_path: Path) -> None:
    small = np.array([[0, 5], [255, 0]], np.uint8)
    result = checked(tmp_path, encoded(noise(4, 4)), encoded(small), mask_size="fix")
    assert outcomes(result) == [("mask_size", "fixed")]
    assert mask_of(result).tolist() == [[0, 0, 1, 1]] * 2 + [[IGNORE, IGNORE, 0, 0]] * 2


def test_a_mask_of_a_different_shape_cannot_be_fixed(tmp_path: Path) -> None:
    result = checked(tmp_path, encoded(noise(4, 4)), encoded(MASK), mask_size="fix")
    assert outcomes(result) == [("mask_size", "quarantined")]


def test_undeclared_values_can_be_ignored(tmp_path: Path) -> None:
    mask = np.array([[0, 5, 7], [255, 9, 5]], np.uint8)
    result = checked(tmp_path, encoded(IMAGE), encoded(mask), mask_values="fix")
    assert outcomes(result) == [("mask_values", "fixed")]
    assert mask_of(result).tolist() == [[0, 1, IGNORE], [IGNORE, IGNORE, 1]]


BLURRED = np.array([[0, 0, 10, 20, 30, 40, 200, 210, 220, 230, 250, 250]] + [[0] * 6 + [250] * 6] * 9, np.uint8)


def blurred(raw: Path, policy: str) -> CheckedSample:
    two = Classes(("back", "front"), ((0, 0, 0), (9, 9, 9)), {0: 0, 250: 1}, ())
    write(raw / "i.png", encoded(noise(10, 12)))
    write(raw / "m.png", encoded(BLURRED))
    sample = RawSample("i", "i.png", Numbers("m.png"), "g", None)
    return check(sample, files=RawFiles(raw), rules=rules(two, blurred_mask=policy))


def test_a_blurred_mask_is_recognized(tmp_path: Path) -> None:
    problem = left_out(blurred(tmp_path, "quarantine"))
    assert problem.kind == "blurred_mask"
    assert problem.found == "has 8 values between those of the classes, in 6.7% of its pixels"


def test_each_pixel_of_a_blurred_mask_can_take_the_nearest_class(tmp_path: Path) -> None:
    result = blurred(tmp_path, "fix")
    assert outcomes(result) == [("blurred_mask", "fixed")]
    assert mask_of(result).tolist() == [[0] * 6 + [1] * 6] * 10


def test_a_blurred_color_mask_takes_the_nearest_color(tmp_path: Path) -> None:
    colors = [(0, 0, 0), (200, 0, 0)]
    classes = Classes(("back", "front"), ((0, 0, 0), (9, 9, 9)), {COLOR: 0, COLOR | 200 << 16: 1}, ())
    mask = np.array([[colors[0]] * 6 + [colors[1]] * 6] * 10, np.uint8)
    mask[0, 2:10] = [(20 * n, n, 0) for n in (1, 2, 3, 4, 6, 7, 8, 9)]
    write(tmp_path / "i.png", encoded(noise(10, 12)))
    write(tmp_path / "m.png", encoded(mask))
    sample = RawSample("i", "i.png", Colors("m.png"), "g", None)
    result = check(sample, files=RawFiles(tmp_path), rules=rules(classes, blurred_mask="fix"))
    assert mask_of(result).tolist() == [[0] * 6 + [1] * 6] * 10


EMPTY = np.full((2, 3), 255, np.uint8)


def test_a_mask_of_only_ignored_pixels_is_treated_as_missing(tmp_path: Path) -> None:
    result = checked(tmp_path, encoded(IMAGE), encoded(EMPTY))
    assert outcomes(result) == [("empty_mask", "fixed")]
    assert result.image is not None and result.mask is None and result.class_counts == {}


def test_a_mask_of_only_ignored_pixels_can_be_kept_or_exclude_the_image(tmp_path: Path) -> None:
    assert (mask_of(checked(tmp_path, encoded(IMAGE), encoded(EMPTY), empty_mask="allow")) == IGNORE).all()
    assert left_out(checked(tmp_path, encoded(IMAGE), encoded(EMPTY), empty_mask="quarantine")).kind == "empty_mask"


def test_every_kind_of_problem_has_a_policy() -> None:
    """Every kind of problem in the code has a policy in params.yaml, and vice versa."""
    reported = set()
    for path in (ROOT / "pspnet/raw").rglob("*.py"):
        reported |= {kind for kind in ProblemsParams.model_fields if f'"{kind}"' in path.read_text()}
    assert reported == set(ProblemsParams.model_fields)


def test_a_broken_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "i.png").symlink_to(tmp_path / "nowhere")
    sample = RawSample("i", "i.png", None, "g", None)
    problem = left_out(check(sample, files=RawFiles(tmp_path), rules=rules(CLASSES)))
    assert "broken link" in problem.found


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "i.png")
    sample = RawSample("i", "i.png", None, "g", None)
    left_out(check(sample, files=RawFiles(tmp_path), rules=rules(CLASSES)))


def test_a_file_too_large_for_any_allowed_image_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "i.png").open("wb") as file:
        file.truncate(2**24 + 8 * 100 + 1)
    sample = RawSample("i", "i.png", None, "g", None)
    problem = left_out(check(sample, files=RawFiles(tmp_path), rules=rules(CLASSES, 100)))
    assert problem.found.startswith("is 17 MB")


def test_twenty_problems_are_all_shown() -> None:
    problems = [Problem(f"{number}", "is bad", "good") for number in range(20)]
    assert shortened(problems) == problems


def test_more_than_twenty_problems_are_counted_and_explained_by_kind() -> None:
    problems = [Problem(f"{n}", "is bad", "good" if n % 3 else "fair", "Mend it.") for n in range(30)]
    shown = shortened(problems)
    assert shown[:2] == problems[:2]
    assert shown[2:20] == [Problem(f"{n}", "is bad") for n in range(2, 20)]
    assert [problem.found for problem in shown[20:]] == ["and 10 more. In all: 20 x expected good; 10 x expected fair"]
