"""labelme's JSON files, next to the photos."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pspnet.errors import UserError
from pspnet.raw.classes import IGNORE
from tests.raw.found_images import classes_of, found, outcome, params, prepared
from tests.raw.rawdata import encoded, left_out, noise, shared_data, write

LABELME = {"layout": "labelme", "images": ".", "annotations": r".*\.json", "line_width_px": 2}
VOC = {"layout": "voc", "images": "JPEGImages", "masks": "SegmentationClass", "splits": "ImageSets/Segmentation"}


def shape(kind: Any, points: Any, label: Any = "car", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, **more}


def write_photo(raw: Path, *shapes: dict[str, Any], name: str = "a", **changes: Any) -> None:
    """Write a photo of 6 x 4 pixels and its JSON file."""
    content = {"shapes": shapes, "imagePath": f"{name}.jpg", "imageHeight": 4, "imageWidth": 6, "imageData": None}
    write(raw / f"{name}.json", json.dumps(content | changes))
    write(raw / f"{name}.jpg", encoded(noise(4, 6), "JPEG"))


def reported(raw: Path, source: dict[str, Any] = LABELME) -> list[tuple[str, str]]:
    return [(problem.where, problem.found) for problem in found(raw, params(source))[1]]


def drawn(raw: Path, **changes: Any) -> list[str]:
    dataset = params(LABELME | changes)
    [sample] = found(raw, dataset)[0].values()
    mask = prepared(raw, dataset, sample)
    return ["".join("x" if value == IGNORE else ".12"[value] for value in row) for row in mask]


def near_a_border(mask: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return True where a pixel and its eight neighbors are not all of the same class."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(mask, 1, mode="edge"), (3, 3))
    return np.asarray(windows.max(axis=(2, 3)) != windows.min(axis=(2, 3)))


def test_real_photos_are_drawn_as_labelme_draws_them_except_along_borders() -> None:
    raw = shared_data("layouts") / "labelme_voc"
    own = params(LABELME | {"images": "data_annotated", "annotations": r"data_annotated/.*\.json"})
    exported = params(VOC)
    assert classes_of(raw, own).names == classes_of(raw / "data_dataset_voc", exported).names
    samples, problems = found(raw, own)
    others, _ = found(raw / "data_dataset_voc", exported)
    assert list(samples) == list(others) == ["2011_000003", "2011_000006", "2011_000025"] and not problems
    for name, sample in samples.items():
        mask, other = prepared(raw, own, sample), prepared(raw / "data_dataset_voc", exported, others[name])
        assert set(np.unique(mask)) == set(np.unique(other))
        assert (mask != other).mean() < 0.006  # labelme's own export makes each shape half a pixel larger on every side
        assert not ((mask != other) & ~near_a_border(mask) & ~near_a_border(other)).any()


def test_without_a_list_the_labels_come_from_the_files() -> None:
    raw = shared_data("layouts") / "labelme_instances"
    samples, problems = found(raw, params(LABELME))
    assert len(samples) == 3 and not problems
    assert classes_of(raw, params(LABELME)).names == ("background", "bottle", "bus", "car", "chair", "person", "sofa")


@pytest.mark.parametrize(
    ("kind", "points", "expected"),
    [
        ("polygon", [[1, 1], [3, 1], [3, 3], [1, 3]], ["......", ".11...", ".11...", "......"]),
        (None, [[1, 1], [3, 1], [3, 3], [1, 3]], ["......", ".11...", ".11...", "......"]),
        ("rectangle", [[3, 3], [1, 1]], ["......", ".11...", ".11...", "......"]),
        ("oriented_rectangle", [[1, 1], [3, 1], [3, 3], [1, 3]], ["......", ".11...", ".11...", "......"]),
        ("circle", [[3, 2], [3, 3.7]], ["..11..", ".1111.", ".1111.", "..11.."]),
        ("line", [[2, 2], [4, 2]], ["......", ".1111.", ".1111.", "......"]),
        ("linestrip", [[1, 1], [1, 3], [5, 3]], ["11....", "11....", "111111", "111111"]),
        ("point", [[2, 2]], ["......", ".11...", ".11...", "......"]),
        ("points", [[1, 1], [5, 3]], ["11....", "11....", "....11", "....11"]),
    ],
)
def test_every_kind_of_shape_is_drawn(tmp_path: Path, kind: str, points: Any, expected: list[str]) -> None:
    write_photo(tmp_path, shape(kind, points))
    assert drawn(tmp_path) == expected


def test_a_mask_in_the_file_is_drawn_at_its_corners(tmp_path: Path) -> None:
    data = base64.b64encode(encoded(np.array([[0, 255, 255], [255, 0, 0]], np.uint8))).decode()
    write_photo(tmp_path, shape("mask", [[2, 1], [4, 2]], mask=data))
    assert drawn(tmp_path) == ["......", "...11.", "..1...", "......"]


def test_lines_and_points_can_be_left_out(tmp_path: Path) -> None:
    lines = shape("line", [[2, 2], [4, 2]]), shape("linestrip", [[2, 2], [4, 2]]), shape("point", [[2, 2]])
    write_photo(tmp_path, *lines, shape("points", [[2, 2]]), shape("rectangle", [[0, 0], [1, 1]]))
    assert drawn(tmp_path, line_width_px=0) == ["1.....", "......", "......", "......"]


def test_later_shapes_are_on_top_and_special_labels_are_background_or_ignored(tmp_path: Path) -> None:
    write_photo(
        tmp_path,
        shape("rectangle", [[0, 0], [6, 4]], "van"),
        shape("rectangle", [[0, 0], [2, 2]], "car"),
        shape("rectangle", [[1, 1], [3, 3]], "_background_"),
        shape("rectangle", [[5, 0], [6, 4]], "__ignore__"),
    )
    assert classes_of(tmp_path, params(LABELME)).names == ("background", "car", "van")
    assert drawn(tmp_path) == ["11222x", "1..22x", "2..22x", "22222x"]


def test_the_labels_file_defines_all_labels_and_their_order(tmp_path: Path) -> None:
    write(tmp_path / "labels.txt", "__ignore__\n_background_\nvan\ncar\n")
    write_photo(tmp_path, shape("rectangle", [[0, 0], [2, 2]], "car"))
    write_photo(tmp_path, shape("rectangle", [[0, 0], [2, 2]], "cra"), name="b")
    assert classes_of(tmp_path, params(LABELME)).names == ("background", "van", "car")
    assert reported(tmp_path) == [("b.json", "for b.jpg: has label 'cra'")]
    write(tmp_path / "labels.txt", b"\xff\xff")
    with pytest.raises(UserError, match=r"labels\.txt: is not UTF-8 text"):
        classes_of(tmp_path, params(LABELME))


def test_a_photo_without_a_file_has_no_mask_and_folders_are_official_splits(tmp_path: Path) -> None:
    write_photo(tmp_path, name="train/a", imagePath="a.jpg")
    write(tmp_path / "test/b.jpg", encoded(noise(4, 6), "JPEG"))
    samples, _ = found(tmp_path, params(LABELME))
    assert {name: (sample.split, sample.mask is not None) for name, sample in samples.items()} == {
        "train/a": ("train", True),
        "test/b": ("test", False),
    }


@pytest.mark.parametrize(
    ("path", "photo"),
    [
        ("../photos/a.jpg", "photos/a"),
        (r"..\photos\a.jpg", "photos/a"),
        ("b.jpg", "files/b"),
        (r"C:\set\b.jpg", "files/b"),
        ("/home/me/b.jpg", "files/b"),
        ("renamed.jpg", "files/a"),
        (None, "files/a"),
        (3, "files/a"),
    ],
)
def test_a_photo_is_found_at_its_path_or_next_to_its_json_file(tmp_path: Path, path: Any, photo: str) -> None:
    write_photo(tmp_path, name="files/a", imagePath=path)
    write(tmp_path / "photos/a.jpg", encoded(noise(4, 6), "JPEG"))
    write(tmp_path / "files/b.jpg", encoded(noise(4, 6), "JPEG"))
    assert [name for name, sample in found(tmp_path, params(LABELME))[0].items() if sample.mask] == [photo]


def test_a_file_without_its_photo_is_reported(tmp_path: Path) -> None:
    write_photo(tmp_path)
    write_photo(tmp_path, name="b", imageData="aaaa")
    (tmp_path / "b.jpg").unlink()
    [problem] = found(tmp_path, params(LABELME))[1]
    assert str(problem) == (
        "b.json: annotates the photo 'b.jpg', which is missing; expected an image in '.'. "
        "Put it next to this file. The copy in imageData is not read."
    )
    assert problem.kind == "mask_without_image"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (shape("polygon", [[1, 1], [2, 2]]), "shape 1 has 4 coordinates; expected x and y of at least 3 points"),
        (shape("rectangle", [[1, 1]]), "shape 1 has 2 coordinates; expected x and y of 2 points"),
        (shape("circle", [[1, 1]] * 3), "shape 1 has 6 coordinates; expected x and y of 2 points"),
        (shape("point", []), "shape 1 has 0 coordinates; expected x and y of at least 1 points"),
        (shape("polygon", None), "shape 1 has a point at nan"),
        (
            shape("cuboid", [[1, 1]]),
            "shape 1 is a 'cuboid'; expected polygon, rectangle, circle, line, linestrip, point",
        ),
        (shape(["polygon"], [[1, 1]] * 3), "shape 1 is a ['polygon']"),
        (shape("mask", [[2, 1], [4, 2]]), "shape 1 has a mask that is not base64"),
        (shape("mask", [[2, 1], [4, 2]], mask="a"), "shape 1 has a mask that is not base64"),
        (shape("mask", [[2, 1]], mask="aaaa"), "shape 1 has 2 coordinates; expected x and y of 2 points"),
    ],
)
def test_a_shape_that_cannot_be_drawn_is_reported(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    write_photo(tmp_path, wrong)
    [problem] = found(tmp_path, params(LABELME))[1]
    assert str(problem).startswith(f"a.json: for a.jpg: {message}")


def test_a_mask_that_is_not_a_picture_is_reported_when_it_is_drawn(tmp_path: Path) -> None:
    write_photo(tmp_path, shape("mask", [[2, 1], [4, 2]], mask="aaaa"))
    [sample] = found(tmp_path, params(LABELME))[0].values()
    problem = left_out(outcome(tmp_path, params(LABELME), sample))
    assert problem.found == "for a.jpg: cannot be recognized as an image"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON (Expecting value: line 1 column 1 (char 0))"),
        ("[]", "contains list, not an object"),
        ('{"images": [], "annotations": []}', "has no list of objects 'shapes'"),
        ('{"shapes": [1]}', "has no list of objects 'shapes'"),
        ('{"shapes": [{"label": 3}]}', "has a shape with label 3"),
    ],
)
def test_one_broken_file_does_not_stop_the_others(tmp_path: Path, text: str, message: str) -> None:
    write_photo(tmp_path, shape("rectangle", [[0, 0], [2, 2]]))
    write_photo(tmp_path, name="b")
    write(tmp_path / "b.json", text)
    assert reported(tmp_path) == [("b.json", message)]
    assert classes_of(tmp_path, params(LABELME)).names == ("background", "car")
    (tmp_path / "a.json").unlink()
    for read in (found, classes_of):
        with pytest.raises(UserError) as error:
            read(tmp_path, params(LABELME))
        assert error.value.problems[0].found == message


def test_a_photo_rotated_by_exif_can_be_annotated_upright_or_as_stored(tmp_path: Path) -> None:
    pixels = noise(4, 6)
    write_photo(tmp_path, shape("rectangle", [[0, 0], [1, 1]]), imageHeight=6, imageWidth=4)
    write(tmp_path / "a.jpg", encoded(pixels, "JPEG", orientation=6))
    upright = drawn(tmp_path)
    assert upright[0] == "1..." and len(upright) == 6
    write_photo(tmp_path, shape("rectangle", [[0, 0], [1, 1]]))
    write(tmp_path / "a.jpg", encoded(pixels, "JPEG", orientation=6))
    assert drawn(tmp_path)[0] == "...1"  # after a clockwise quarter turn
    write_photo(tmp_path, shape("rectangle", [[0, 0], [1, 1]]), imageHeight=None, imageWidth=None)
    write(tmp_path / "a.jpg", encoded(pixels, "JPEG", orientation=6))
    assert drawn(tmp_path) == upright
