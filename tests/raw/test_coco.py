"""COCO's JSON: objects as polygons or run lengths, and panoptic segments."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pspnet.errors import UserError
from pspnet.raw.classes import IGNORE
from pspnet.raw.layouts import annotations
from tests.raw.found_images import classes_of, found, outcome, params, prepared
from tests.raw.rawdata import encoded, left_out, noise, shared_data, write

COCO = {"layout": "coco", "images": "images", "annotations": r"annotations/.*\.json"}
PANOPTIC = {"layout": "coco_panoptic", "images": "images", "masks": "segments", "annotations": r"annotations/.*\.json"}
CATEGORIES = [{"id": 7, "name": "car"}, {"id": 3, "name": "tree"}]
SQUARE = [1, 1, 3, 1, 3, 3, 1, 3]


def image(name: str = "a.jpg", number: int = 1, height: Any = 4, width: Any = 6) -> dict[str, Any]:
    return {"id": number, "file_name": name, "height": height, "width": width}


def object_(segmentation: Any, category: Any = 7, image: Any = 1, **more: Any) -> dict[str, Any]:
    return {"id": 5, "image_id": image, "category_id": category, "segmentation": segmentation, **more}


def write_coco(raw: Path, *annotations: dict[str, Any], name: str = "all.json", **changes: Any) -> None:
    """Write an annotation file for one image of 6 x 4 pixels, and the image."""
    content = {"images": [image()], "annotations": annotations, "categories": CATEGORIES, **changes}
    write(raw / "annotations" / name, json.dumps(content))
    write(raw / "images/a.jpg", encoded(noise(4, 6), "JPEG"))


def reported(raw: Path, source: dict[str, Any] = COCO) -> list[tuple[str, str]]:
    return [(problem.where, problem.found) for problem in found(raw, params(source))[1]]


def drawn(raw: Path, source: dict[str, Any] = COCO, **changes: Any) -> list[str]:
    """Return the only mask, as text."""
    dataset = params(source, **changes)
    [sample] = [sample for sample in found(raw, dataset)[0].values() if sample.mask]
    return [
        "".join(".12"[value] if value != IGNORE else "x" for value in row) for row in prepared(raw, dataset, sample)
    ]


def test_real_objects_are_drawn_as_their_classes() -> None:
    raw = shared_data("layouts") / "coco_instances"
    dataset = params(COCO | {"images": "JPEGImages", "annotations": "annotations.json"})
    samples, problems = found(raw, dataset)
    assert list(samples) == ["2011_000003", "2011_000006", "2011_000025"] and not problems
    names = classes_of(raw, dataset).names
    assert (len(names), names[0], names[-1]) == (21, "background", "tv/monitor")
    mask = prepared(raw, dataset, samples["2011_000025"])
    shares = {names[value]: (mask == value).mean() for value in np.unique(mask)}
    assert shares == {
        "background": pytest.approx(0.3333, abs=0.001),
        "bus": pytest.approx(0.6287, abs=0.001),
        "car": pytest.approx(0.0380, abs=0.001),
    }


def test_runs_and_panoptic_segments_of_the_same_real_images_agree_in_every_pixel() -> None:
    raw = shared_data("layouts") / "coco_panoptic/sample_data"
    folders = {"images": "input_images", "masks": "panoptic_examples", "annotations": "panoptic_examples.json"}
    panoptic = params(PANOPTIC | folders)
    runs = params(COCO | {"images": "input_images", "annotations": "panoptic_coco_detection_format.json"})
    assert classes_of(raw, runs).names == ("background", *classes_of(raw, panoptic).names)
    assert classes_of(raw, panoptic).colors[0] == (220, 20, 60)
    of_runs, _ = found(raw, runs)
    samples, problems = found(raw, panoptic)
    assert list(samples) == ["000000142238", "000000439180"] and not problems
    for name, sample in samples.items():
        mask = prepared(raw, panoptic, sample)
        assert len(np.unique(mask)) >= 6
        assert np.array_equal(np.where(mask == IGNORE, 0, mask + 1), prepared(raw, runs, of_runs[name]))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            COCO | {"annotations": "images_info_examples.json"},
            "images_info_examples.json: has no list of objects 'annotations'",
        ),
        (
            COCO | {"annotations": "panoptic_examples.json"},
            r"has annotations with segments_info.*: coco_panoptic in",
        ),
        (
            PANOPTIC | {"masks": "panoptic_examples", "annotations": "panoptic_coco_detection_format.json"},
            r"has annotations with segmentation; .*layout: coco in",
        ),
    ],
)
def test_real_files_of_a_different_kind_are_refused(source: dict[str, Any], message: str) -> None:
    raw = shared_data("layouts") / "coco_panoptic/sample_data"
    with pytest.raises(UserError, match=message):
        found(raw, params(source | {"images": "input_images"}))


def test_real_files_for_train_and_val_name_the_splits() -> None:
    raw = shared_data("layouts") / "tiny_coco_instances"
    dataset = params(COCO)
    samples, problems = found(raw, dataset)
    assert {name: sample.split for name, sample in samples.items()} == {"val/b": "val"}
    assert np.array_equal(prepared(raw, dataset, samples["val/b"])[:, 0], [1, 1, 2, 2, 2, 2, 2, 2, 2, 2])
    [problem] = problems
    assert problem.where == "annotations/instances_train.json"
    assert problem.found == "for images/train/a.jpg: annotation 1 has no segmentation"


def test_the_smaller_of_two_objects_is_on_top(tmp_path: Path) -> None:
    large, small = object_([[0, 0, 6, 0, 6, 4, 0, 4]]), object_([SQUARE], category=3)
    write_coco(tmp_path, small, large)
    assert drawn(tmp_path) == ["111111", "122111", "122111", "111111"]
    assert classes_of(tmp_path, params(COCO)).names == ("background", "car", "tree")


def test_an_object_can_have_several_parts_and_a_crowd_gets_its_class(tmp_path: Path) -> None:
    crowd = {"size": [4, 6], "counts": [16, 4, 4]}
    write_coco(tmp_path, object_([SQUARE, [5, 0, 6, 0, 6, 1, 5, 1]]), object_(crowd, category=3, iscrowd=1))
    assert drawn(tmp_path) == ["....21", ".11.2.", ".11.2.", "....2."]


def test_an_image_without_objects_is_background_and_an_unlisted_image_has_no_mask(tmp_path: Path) -> None:
    write_coco(tmp_path)
    write(tmp_path / "images/unlabeled2017/b.jpg", encoded(noise(4, 6), "JPEG"))
    samples, problems = found(tmp_path, params(COCO))
    assert {name: sample.mask is not None for name, sample in samples.items()} == {"a": True, "unlabeled2017/b": False}
    assert drawn(tmp_path) == ["......"] * 4
    assert not problems


def test_labels_can_be_merged_and_ignored(tmp_path: Path) -> None:
    write_coco(tmp_path, object_([[0, 0, 6, 0, 6, 4, 0, 4]]), object_([SQUARE], category=3))
    classes = {"rest": "background", "car": "car"}
    assert drawn(tmp_path, classes=classes, ignore_values=["tree"]) == ["111111", "1xx111", "1xx111", "111111"]


def test_a_category_named_background_is_the_background(tmp_path: Path) -> None:
    categories = [{"id": 0, "name": "_background_"}, {"id": 7, "name": "car"}]
    write_coco(tmp_path, object_([SQUARE]), categories=categories)
    assert classes_of(tmp_path, params(COCO)).names == ("background", "car")
    assert drawn(tmp_path) == ["......", ".11...", ".11...", "......"]


def test_two_files_can_number_their_categories_differently(tmp_path: Path) -> None:
    other = [{"id": 1, "name": "tree"}, {"id": 2, "name": "dirt"}]
    write_coco(tmp_path, object_([SQUARE], category=1), name="b.json", categories=other)
    write_coco(tmp_path, name="a.json", images=[])
    assert classes_of(tmp_path, params(COCO)).names == ("background", "car", "tree", "dirt")
    assert drawn(tmp_path) == ["......", ".22...", ".22...", "......"]


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("annotations/instances_train2017.json", "train"),
        ("annotations/image_info_test-dev2017.json", "test"),
        ("annotations/valid.json", "val"),
        ("annotations/trainval.json", None),
        ("annotations/train_and_val.json", None),
        ("annotations/constraints.json", None),
        ("test/_annotations.coco.json", "test"),
        ("val2017/train.json", "train"),
    ],
)
def test_the_name_of_a_file_or_its_folder_determines_the_official_split(tmp_path: Path, file: str, split: str) -> None:
    write_coco(tmp_path, object_([SQUARE]))
    write(tmp_path / file, (tmp_path / "annotations/all.json").read_text())
    [sample] = found(tmp_path, params(COCO | {"annotations": file}))[0].values()
    assert sample.split == split


def test_an_image_is_found_by_its_name_with_or_without_folders(tmp_path: Path) -> None:
    for name in ("a.jpg", "images/a.jpg", "/home/me/set/images/a.jpg", r"images\a.jpg", "./a.jpg", "a"):
        write_coco(tmp_path, images=[image(name)])
        assert list(found(tmp_path, params(COCO))[0]) == ["a"]
    for name in ("A.jpg", "a.png", "", "..", "a.jpg.jpg"):
        write_coco(tmp_path, images=[image("a.jpg"), image(name, 2)])
        assert reported(tmp_path) == [("annotations/all.json", f"lists {name!r}, which is missing")]
    write(tmp_path / "images/north/b.jpg", encoded(noise(4, 6), "JPEG"))
    write_coco(tmp_path, images=[image("b.jpg"), image("south/b.jpg", 2)])
    assert reported(tmp_path) == [("annotations/all.json", "lists 'south/b.jpg', which is missing")]


def test_a_name_without_a_folder_means_the_image_in_the_top_folder(tmp_path: Path) -> None:
    write_coco(tmp_path)
    write(tmp_path / "images/old/a.jpg", encoded(noise(4, 6), "JPEG"))
    samples, problems = found(tmp_path, params(COCO))
    assert {name: sample.mask is not None for name, sample in samples.items()} == {"a": True, "old/a": False}
    assert not problems


def test_the_folder_of_an_image_determines_its_split_if_no_file_does(tmp_path: Path) -> None:
    write_coco(tmp_path)
    (tmp_path / "images/val2017").mkdir()
    (tmp_path / "images/a.jpg").rename(tmp_path / "images/val2017/a.jpg")
    assert [sample.split for sample in found(tmp_path, params(COCO))[0].values()] == ["val"]


def test_the_split_decides_between_images_with_the_same_name(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_coco(tmp_path, name=f"instances_{split}.json")
        write(tmp_path / f"images/{split}2017/a.jpg", encoded(noise(4, 6), "JPEG"))
    (tmp_path / "images/a.jpg").unlink()
    samples, problems = found(tmp_path, params(COCO))
    assert {name: sample.split for name, sample in samples.items()} == {"train2017/a": "train", "val2017/a": "val"}
    assert not problems
    (tmp_path / "annotations/instances_val.json").unlink()
    (tmp_path / "annotations/instances_train.json").rename(tmp_path / "annotations/all.json")
    with pytest.raises(UserError, match=r"lists 'a\.jpg', which could be any of images/train2017/a.jpg, images/val"):
        found(tmp_path, params(COCO))


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (object_([[1, 1, 2, 2]]), "annotation 5 has 4 coordinates; expected x and y of at least 3 points"),
        (object_([[1, 1, 2, 2, 3, float("nan")]]), "annotation 5 has a point at nan; expected points in the image"),
        (object_([SQUARE], category=99), "annotation 5 has category 99; expected a category that the file"),
        (object_([SQUARE], category=[7]), "annotation 5 has category [7]; expected a category"),
        (object_([]), "annotation 5 has no segmentation; expected polygons or runs of pixels. Export the objects"),
        (object_(None), "annotation 5 has no segmentation"),
        (object_({"counts": [24]}), "annotation 5 has no segmentation"),
        (object_({"counts": [24], "size": [6, 4]}), "annotation 5 has runs for 4 x 6 pixels; expected the size that"),
        (object_({"counts": [23], "size": [4, 6]}), "annotation 5 has runs of 23 pixels in total; expected 6 x 4"),
        (object_({"counts": "?", "size": [4, 6]}), "annotation 5 has runs of 15 pixels in total; expected 6 x 4"),
        (object_({"counts": "\x01", "size": [4, 6]}), "annotation 5 has runs in a different encoding ('\\x01')"),
        (object_({"counts": {}, "size": [4, 6]}), "annotation 5 has no segmentation"),
        (object_("polygon"), "annotation 5 has no segmentation"),
        (object_(SQUARE), "annotation 5 has 1 coordinates; expected x and y of at least 3 points"),
    ],
)
def test_an_annotation_that_cannot_be_drawn_is_reported_with_its_image(
    tmp_path: Path, annotation: dict[str, Any], message: str
) -> None:
    write_coco(tmp_path, annotation)
    [problem] = found(tmp_path, params(COCO))[1]
    assert str(problem).startswith(f"annotations/all.json: for images/a.jpg: {message}")
    assert problem.kind == "unreadable"


@pytest.mark.parametrize("size", [(0, 6), (4, None), (4.5, 6), ("4", "six"), (float("nan"), 6), (-4, -6)])
def test_an_invalid_size_is_reported(tmp_path: Path, size: tuple[Any, Any]) -> None:
    write_coco(tmp_path, object_([SQUARE]), images=[image(height=size[0], width=size[1])])
    [(where, text)] = reported(tmp_path)
    assert where == "annotations/all.json"
    assert re.match("for images/a.jpg: (has height|its size has)", text)


def test_a_wrong_size_is_reported_and_a_missing_one_is_taken_from_the_image(tmp_path: Path) -> None:
    write_coco(tmp_path, object_([SQUARE]), images=[image(height=5)])
    dataset = params(COCO)
    [sample] = found(tmp_path, dataset)[0].values()
    problem = left_out(outcome(tmp_path, dataset, sample))
    assert (problem.where, problem.found) == (
        "annotations/all.json",
        "has 6 x 5 pixels, but its image images/a.jpg has 6 x 4",
    )
    write_coco(tmp_path, object_([SQUARE]), images=[image(height=None, width=None)])
    assert drawn(tmp_path) == ["......", ".11...", ".11...", "......"]


def test_a_polygon_outside_its_image_is_reported_when_it_is_drawn(tmp_path: Path) -> None:
    write_coco(tmp_path, object_([[10, 1, 12, 1, 12, 3]]))
    [sample] = found(tmp_path, params(COCO))[0].values()
    problem = left_out(outcome(tmp_path, params(COCO), sample))
    assert problem.found == "for images/a.jpg: annotation 5 is outside the image, from (10, 1) to (12, 3)"


def test_differences_between_lists_and_files_are_reported(tmp_path: Path) -> None:
    orphans = [object_([SQUARE], image=9), object_([SQUARE], image=9), object_([SQUARE], image=None)]
    write_coco(tmp_path, *orphans, images=[image(), image("gone.jpg", 2), image("again.jpg", 1), {"id": 3}])
    write(tmp_path / "images/notes.docx", "")
    assert reported(tmp_path) == [
        ("images/notes.docx", "does not have the suffix of an image"),
        ("annotations/all.json", "has an image {'id': 1, 'file_name': 'again.jpg', 'height': 4, 'width': 6}"),
        ("annotations/all.json", "has an image {'id': 3}"),
        ("annotations/all.json", "has 2 annotations of image 9, which it does not list"),
        ("annotations/all.json", "has 1 annotations of image None, which it does not list"),
        ("annotations/all.json", "lists 'gone.jpg', which is missing"),
    ]
    kinds = {problem.kind for problem in found(tmp_path, params(COCO))[1]}
    assert kinds == {"mask_without_image", "unreadable", "not_an_image"}


def test_images_with_the_same_id_and_images_listed_twice_are_reported(tmp_path: Path) -> None:
    write_coco(tmp_path, name="train.json")
    write_coco(tmp_path, name="val.json")
    write(tmp_path / "images/b.jpg", encoded(noise(4, 6), "JPEG"))
    write(tmp_path / "images/b.png", encoded(noise(4, 6)))
    assert reported(tmp_path) == [
        ("images/a.jpg", "is listed 2 times: in annotations/train.json, annotations/val.json"),
        ("images/b.jpg", "has the same id as images/b.png"),
        ("images/b.png", "has the same id as images/b.jpg"),
    ]
    assert {problem.kind for problem in found(tmp_path, params(COCO))[1]} == {"ambiguous"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"is not JSON \(Expecting value"),
        ('{"images": [', r"is not JSON"),
        ("[" * 100_000, r"is not JSON \(maximum recursion depth"),
        ("\udcff", r"is not JSON"),
        ('{"images": ' + "9" * 5000 + "}", r"is not JSON \(Exceeds the limit"),
        ("[1, 2]", r"contains list, not an object"),
        ("{}", r"has no list of objects 'categories'"),
        ('{"categories": [1]}', r"has no list of objects 'categories'"),
        ('{"categories": [{"id": 1}]}', r"has a category \{'id': 1\}; expected an id and a name for each"),
        (
            '{"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            r"has two categories with id 1; expected one",
        ),
        ('{"categories": [], "images": {}}', r"has no list of objects 'images'"),
    ],
)
def test_a_file_that_is_not_coco_is_reported_with_its_path(tmp_path: Path, text: str, message: str) -> None:
    write_coco(tmp_path)
    write(tmp_path / "annotations/all.json", text.encode("utf-8", "surrogateescape"))
    for read in (found, classes_of):
        with pytest.raises(UserError, match=rf"annotations/all\.json: {message}") as error:
            read(tmp_path, params(COCO))
        assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("name", ["\udcff", "a\nb", "\x1b[31m"])
def test_unprintable_text_is_reported_in_printable_form(tmp_path: Path, name: str) -> None:
    write_coco(tmp_path, images=[image(), image(name, 2)])
    [(_, text)] = reported(tmp_path)
    assert text == f"lists {name!r}, which is missing" and text.isprintable()
    write_coco(tmp_path, categories=[{"id": 1, "name": name}])
    with pytest.raises(UserError, match=r"the annotations: have the label '.*'; expected one line of text"):
        classes_of(tmp_path, params(COCO))


def test_an_annotation_file_has_its_own_size_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_coco(tmp_path)
    monkeypatch.setattr(annotations, "MOST_BYTES", 100)
    with pytest.raises(UserError, match=r"all\.json: is 0 MB; expected annotation files of at most 0 MB"):
        found(tmp_path, params(COCO))


def test_empty_folders_are_reported_together(tmp_path: Path) -> None:
    write(tmp_path / "images/readme.txt", "")
    with pytest.raises(UserError) as error:
        found(tmp_path, params(PANOPTIC))
    assert [problem.found for problem in error.value.problems] == [
        "has no images",
        "has no masks",
        "has no annotations",
    ]
    with pytest.raises(UserError, match=r"dataset\.source\.images is '\.\./x'; expected a folder below the raw data"):
        found(tmp_path, params(COCO | {"images": "../x"}))


def test_everything_can_be_in_an_archive(tmp_path: Path) -> None:
    write_coco(tmp_path / "batch", object_([SQUARE]))
    shutil.make_archive(str(tmp_path / "raw/batch"), "zip", tmp_path / "batch")
    assert drawn(tmp_path / "raw") == ["......", ".11...", ".11...", "......"]


def segments(*ids: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return 4 rows of 6 pixels, with two columns per id."""
    parts = [one.to_bytes(3, "little") for one in ids for _ in range(2)]
    return np.tile(np.array([list(part) for part in parts], np.uint8), (4, 1, 1))


def write_panoptic(raw: Path, *infos: dict[str, Any], **changes: Any) -> None:
    annotation = {"image_id": 1, "file_name": "a.png", "segments_info": infos, **changes}
    write_coco(raw, annotation)
    write(raw / "segments/a.png", encoded(segments(0, 258, 70_000)))


def test_panoptic_segments_get_their_categories_and_0_is_not_annotated(tmp_path: Path) -> None:
    write_panoptic(tmp_path, {"id": 70_000, "category_id": 7}, {"id": 258, "category_id": 3})
    assert classes_of(tmp_path, params(PANOPTIC)).names == ("car", "tree")
    assert drawn(tmp_path, PANOPTIC) == ["xx11.."] * 4


def test_problems_with_panoptic_segments_are_reported(tmp_path: Path) -> None:
    write_panoptic(tmp_path, {"id": 258, "category_id": 3})
    [sample] = found(tmp_path, params(PANOPTIC))[0].values()
    problem = left_out(outcome(tmp_path, params(PANOPTIC), sample))
    assert (problem.where, problem.found) == ("segments/a.png", "has segment 70000")
    for wrong, text in (
        ({"id": 258, "category_id": 9}, "segment 258 has category 9"),
        ({"id": "one", "category_id": 7}, "has a segment with id 'one'"),
    ):
        write_panoptic(tmp_path, wrong)
        assert reported(tmp_path, PANOPTIC) == [("annotations/all.json", f"for images/a.jpg: {text}")]
    for name, text in ((None, "has no file_name for its mask"), ("b.png", "lists 'b.png', which is missing")):
        write_panoptic(tmp_path, file_name=name)
        assert reported(tmp_path, PANOPTIC) == [
            ("annotations/all.json", f"for images/a.jpg: {text}"),
            ("segments/a.png", "is not named by any annotation"),
        ]
