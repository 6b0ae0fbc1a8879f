"""Drawn shapes compared with text pictures in which `#` marks the inside."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from pspnet.raw import shapes
from pspnet.raw.files import RawFiles
from pspnet.raw.images import Refused, TooLarge
from pspnet.raw.shapes import Drawing, Picture, Shape, box, ellipse, line, polygon, runs, uncompressed
from tests.raw.rawdata import LIMIT, encoded, noise, write

COMPRESSED = "c04200MO11OO11OO11OO1120000000000000000000000000000000000000000f0M<"  # compressed by COCO's own tools


def drawn(*own: Shape, height: int = 5, width: int = 8) -> list[str]:
    drawing = Drawing("a.json", (height, width), 0, own, "a.png")
    values = drawing.values(RawFiles(Path()), LIMIT, LIMIT)
    return ["".join(".#23456789"[value] for value in row) for row in values]


def refusal(own: Shape, height: int = 5, width: int = 8) -> str:
    with pytest.raises(Refused) as error:
        Drawing("a.json", (height, width), 0, (own,), "a.png").values(RawFiles(Path()), LIMIT, LIMIT)
    return error.value.found


def test_a_polygon_covers_the_pixels_whose_centers_are_inside() -> None:
    assert drawn(polygon("p", 1, [1, 1, 3, 1, 3, 4, 1, 4])) == [
        "........",
        ".##.....",
        ".##.....",
        ".##.....",
        "........",
    ]
    assert drawn(polygon("p", 1, [[1.5, 1.4], [3.6, 1.4], [3.6, 2.6], [1.5, 2.6]])) == [
        "........", ".###....", ".###....", "........", "........",
    ]  # fmt: skip
    assert drawn(polygon("p", 1, [0, 0, 5, 0, 0, 5])) == ["####....", "###.....", "##......", "#.......", "........"]


def test_a_polygon_can_be_concave_and_cross_itself() -> None:
    u_shape = [0, 0, 2, 0, 2, 3, 4, 3, 4, 0, 6, 0, 6, 5, 0, 5]
    assert drawn(polygon("p", 1, u_shape)) == ["##..##..", "##..##..", "##..##..", "######..", "######.."]
    twice_around = [0, 0, 6, 0, 6, 5, 0, 5, 0, 0, 2, 1, 2, 4, 4, 4, 4, 1, 2, 1]
    assert drawn(polygon("p", 1, twice_around)) == ["######..", "##..##..", "##..##..", "##..##..", "######.."]


def test_a_polygon_is_clipped_at_the_image() -> None:
    assert drawn(polygon("p", 1, [-100, -50, 2, -50, 2, 2, -100, 2])) == ["##......", "##......", *["........"] * 3]
    assert drawn(polygon("p", 1, [7, -9, 99, -9, 99, 99, 7, 99])) == [".......#"] * 5


def test_a_later_shape_is_drawn_over_earlier_ones() -> None:
    lower, upper = polygon("p", 1, [0, 0, 4, 0, 4, 2, 0, 2]), polygon("q", 2, [2, 1, 6, 1, 6, 3, 2, 3])
    assert drawn(lower, upper) == ["####....", "##2222..", "..2222..", "........", "........"]
    assert drawn(upper, lower) == ["####....", "####22..", "..2222..", "........", "........"]


def test_boxes_ellipses_and_lines_are_polygons() -> None:
    assert drawn(box("b", 1, [1, 1, 4, 3])) == ["........", ".###....", ".###....", "........", "........"]
    # A box can be given by any two opposite corners.
    assert drawn(box("b", 1, [4, 3, 1, 1])) == drawn(box("b", 1, [1, 1, 4, 3]))
    assert drawn(box("b", 1, [0, 2, 5, 3], turned_degrees=90)) == ["..#.....", *["..#....."] * 4]
    assert drawn(ellipse("e", 1, [3, 2.5, 3, 1.2])) == ["........", ".####...", "######..", ".####...", "........"]
    assert drawn(*line("l", 1, [[1.4, 2.5], [5.6, 2.5]], 1)) == [
        "........",
        "........",
        ".#####..",
        "........",
        "........",
    ]
    assert drawn(*line("l", 1, [3, 2], 2)) == ["........", "..##....", "..##....", "........", "........"]


def test_runs_can_go_along_rows_or_down_columns() -> None:
    assert drawn(runs("r", 1, [1, 3, 2], (2, 1, 3, 2), by_columns=False)) == [
        "........", "...##...", "..#.....", "........", "........",
    ]  # fmt: skip
    assert drawn(runs("r", 1, [1, 3, 2], (2, 1, 3, 2), by_columns=True)) == [
        "........", "...#....", "..##....", "........", "........",
    ]  # fmt: skip


def test_runs_that_coco_compressed_are_read() -> None:
    mask = np.zeros((6, 40), np.uint8)
    mask[1:5, 3:30] = 1
    mask[2, 5:9] = 0
    mask[5, 33] = 1
    shape = runs("r", 1, uncompressed("r", COMPRESSED), (0, 0, 40, 6), by_columns=True)
    assert np.array_equal(shape.window(6, 40).inside, mask)
    assert shape.area_px == mask.sum()


def test_a_picture_marks_the_inside_wherever_it_is_not_0() -> None:
    data = encoded(np.array([[0, 1, 255], [1, 0, 0]], np.uint8))
    assert drawn(Picture("m", 1, 2, 1, 3, 2, data)) == ["........", "...##...", "..#.....", "........", "........"]
    assert refusal(Picture("m", 1, 2, 1, 4, 2, data)).endswith("m is a picture of 3 x 2 pixels")
    assert refusal(Picture("m", 1, 2, 1, 3, 2, data[:40])).startswith("for a.png: cannot be")


def test_shapes_know_their_area() -> None:
    assert polygon("p", 1, [0, 0, 5, 0, 0, 4]).area_px == 10
    # The same triangle with its corners in the opposite direction.
    assert polygon("p", 1, [0, 4, 5, 0, 0, 0]).area_px == 10
    assert runs("r", 1, [1, 3, 2], (2, 1, 3, 2), by_columns=False).area_px == 3


@pytest.mark.parametrize(
    ("points", "found"),
    [
        ([1, 2, 3, 4], "p has 4 coordinates"),
        ([1, 2, 3, 4, 5, 6, 7], "p has 7 coordinates"),
        ([], "p has 0 coordinates"),
        (None, "p has a point at nan"),
        ([1, 2, 3, 4, 5, float("nan")], "p has a point at nan"),
        ([1, 2, 3, 4, 5, float("-inf")], "p has a point at -inf"),
        ([1, 2, 3, 4, 5, 1e300], "p has a point at 1e+300"),
        ([1, 2, 3, 4, 5, 10**400], "p has points that are not numbers"),
        ([[1, 2], [3], [4, 5]], "p has points that are not numbers"),
        ({"x": 1}, "p has points that are not numbers"),
        (["one", "two"] * 3, "p has points that are not numbers"),
    ],
)
def test_invalid_points_are_refused(points: object, found: str) -> None:
    with pytest.raises(Refused) as error:
        polygon("p", 1, points)
    assert error.value.found == found


@pytest.mark.parametrize(
    ("counts", "found"),
    [
        ([1, 2], "r has runs of 3 pixels in total"),
        ([1, -2, 7], "r has runs that are not numbers of pixels"),
        ([1, 2.5, 2.5], "r has runs that are not numbers of pixels"),
        ([1, None, 2], "r has runs that are not numbers of pixels"),
        ([1, 10**30], "r has runs that are not numbers of pixels"),
    ],
)
def test_invalid_runs_are_refused(counts: list[object], found: str) -> None:
    with pytest.raises(Refused) as error:
        runs("r", 1, counts, (0, 0, 3, 2), by_columns=True)
    assert error.value.found == found


@pytest.mark.parametrize("text", ["\x00", "é", "o" * 40, "😀"])
def test_compressed_runs_in_a_different_encoding_are_refused(text: str) -> None:
    with pytest.raises(Refused, match="r has runs in a different encoding"):
        uncompressed("r", text)


def test_shapes_outside_their_image_are_refused() -> None:
    found = "for a.png: p is outside the image, from (9, 1) to (12, 4)"
    assert refusal(polygon("p", 1, [9, 1, 12, 1, 12, 4])) == found
    assert "is outside the image" in refusal(polygon("p", 1, [1, -9, 2, -9, 2, -4]))
    within = runs("r", 1, [6], (6, 3, 3, 2), by_columns=True)
    assert refusal(within) == "for a.png: r has 3 x 2 pixels, starting at (6, 3)"


def test_an_image_too_large_to_draw_on_is_refused_before_drawing() -> None:
    with pytest.raises(TooLarge):
        Drawing("a.json", (10**9, 10**9), 0, (), "a.png").values(RawFiles(Path()), LIMIT, LIMIT)


def test_outlines_that_would_take_forever_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    up_and_down = polygon("p", 1, [(x % 7, (x % 2) * 5) for x in range(40)])
    assert drawn(up_and_down)
    monkeypatch.setattr(shapes, "MOST_CROSSINGS", 100)
    assert refusal(up_and_down) == "for a.png: p crosses the rows of its image 200 times"
    monkeypatch.setattr(shapes, "MOST_DRAWN_PX", 39)
    assert refusal(box("b", 1, [0, 0, 8, 5])) == "has 1 shapes on a.png of 0.0 megapixels"


def test_a_drawing_without_a_size_takes_the_size_of_its_upright_image(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg", encoded(noise(4, 6), "JPEG", orientation=6))
    drawing = Drawing("a.json", None, 7, (), "a.jpg")
    assert drawing.paths == ("a.jpg",)
    assert np.array_equal(drawing.values(RawFiles(tmp_path), LIMIT, LIMIT), np.full((6, 4), 7))


def test_a_drawing_is_small_when_pickled_and_its_repr_is_complete() -> None:
    drawing = Drawing("a.json", (5, 8), 0, (polygon("p", 1, [0.5, 0, 5, 0, 0, 4]), box("b", 2, [1, 1, 3, 3])), "a.png")
    assert pickle.loads(pickle.dumps(drawing)) == drawing
    assert len(pickle.dumps(drawing)) < 700
    assert "[0.5, 0.0, 5.0, 0.0, 0.0, 4.0]" in repr(drawing)
    assert drawing.paths == ()
