"""CVAT's two export formats for images: XML with shapes, and color masks."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pspnet.errors import UserError
from pspnet.raw.classes import IGNORE
from tests.raw.found_images import classes_of, found, params, prepared
from tests.raw.rawdata import encoded, noise, shared_data, write

CVAT = {"layout": "cvat", "images": "images", "annotations": r".*\.xml", "line_width_px": 2}
MASKS = {"layout": "cvat_masks", "images": "images", "masks": "SegmentationClass"}
LABELS = """<meta><task><labels>
  <label><name>car</name><color>#dc143c</color><attributes><attribute><name>age</name></attribute></attributes></label>
  <label><name>tree</name><color></color></label>
</labels></task></meta>"""
IMAGE = '<image id="0" name="a.jpg" width="6" height="4">{}</image>'


def write_xml(raw: Path, *shapes: str, images: str = IMAGE, labels: str = LABELS) -> None:
    """Write an annotation file for one image of 6 x 4 pixels, and the image."""
    write(raw / "all.xml", f"<annotations>{labels}{images.format(''.join(shapes))}</annotations>")
    write(raw / "images/a.jpg", encoded(noise(4, 6), "JPEG"))


def box(corners: str, label: str = "car", **more: Any) -> str:
    named = zip(("xtl", "ytl", "xbr", "ybr"), corners.split(), strict=True)
    return f"<box label='{label}' {attributes(dict(named) | more)}/>"


def attributes(values: dict[str, Any]) -> str:
    return " ".join(f'{key}="{value}"' for key, value in values.items())


def reported(raw: Path, source: dict[str, Any] = CVAT) -> list[tuple[str, str]]:
    return [(problem.where, problem.found) for problem in found(raw, params(source))[1]]


def drawn(raw: Path, source: dict[str, Any] = CVAT, **changes: Any) -> list[str]:
    dataset = params(source, **changes)
    [sample] = [sample for sample in found(raw, dataset)[0].values() if sample.mask]
    mask = prepared(raw, dataset, sample)
    return ["".join("x" if value == IGNORE else ".12"[value] for value in row) for row in mask]


def test_the_subsets_of_a_real_project_are_its_splits() -> None:
    raw = shared_data("layouts") / "tiny_for_images/export_project"
    dataset = params(CVAT)
    samples, problems = found(raw, dataset)
    assert {name: sample.split for name, sample in samples.items()} == {
        f"{subset}/img{number}": split
        for subset, split in (("Test", "test"), ("Train", "train"), ("Validation", "val"))
        for number in (0, 1)
    }
    assert not problems
    assert classes_of(raw, dataset).names == ("background", "label1", "label2")
    box_of_label1 = np.zeros((8, 8), np.uint8)
    box_of_label1[2:4, 0:4] = 1
    without_lines = params(CVAT | {"line_width_px": 0})
    assert np.array_equal(prepared(raw, without_lines, found(raw, without_lines)[0]["Train/img0"]), box_of_label1)
    # 2 is the class of a line with label2.
    assert np.unique(prepared(raw, dataset, samples["Train/img0"])).tolist() == [0, 1, 2]


def test_a_real_task_with_shapes_without_labels_is_reported() -> None:
    raw = shared_data("layouts") / "tiny_for_images/export_task"
    assert reported(raw) == [
        ("train.xml", "for images/img0.jpg: has label ''"),
        ("train.xml", "for images/img1.jpg: has label ''"),
    ]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ('<polygon label="car" points="1,1;3,1;3.0,3;1,3"/>', ["......", ".11...", ".11...", "......"]),
        (box("1 1 3 3"), ["......", ".11...", ".11...", "......"]),
        (box("-0.5 1.5 3.5 2.5", rotation=90), [".1...."] * 4),
        ('<ellipse label="car" cx="3" cy="2" rx="2.5" ry="1"/>', ["......", ".1111.", ".1111.", "......"]),
        ('<polyline label="car" points="2,2;4,2"/>', ["......", ".1111.", ".1111.", "......"]),
        ('<points label="car" points="1,1;5,3"/>', ["11....", "11....", "....11", "....11"]),
        (
            '<mask label="car" rle="1, 3, 2" left="2" top="1" width="3" height="2"/>',
            ["......", "...11.", "..1...", "......"],
        ),
        ('<tag label="car"/>', ["......"] * 4),
    ],
)
def test_every_kind_of_shape_is_drawn(tmp_path: Path, shape: str, expected: list[str]) -> None:
    write_xml(tmp_path, shape)
    assert drawn(tmp_path) == expected


def test_z_order_comes_before_the_order_in_the_file(tmp_path: Path) -> None:
    write_xml(tmp_path, box("0 0 6 4", z_order=1), box("0 0 3 4", "tree"), box("0 0 1 4", "tree", z_order=1))
    assert drawn(tmp_path) == ["211111"] * 4
    write_xml(tmp_path, box("0 0 6 4", z_order=-1), box("0 0 3 4", "tree"))
    assert drawn(tmp_path) == ["222111"] * 4


def test_labels_and_colors_come_from_the_task(tmp_path: Path) -> None:
    write_xml(tmp_path, box("0 0 3 4", "tree"))
    assert classes_of(tmp_path, params(CVAT)).names == ("background", "car", "tree")
    assert classes_of(tmp_path, params(CVAT)).colors[1] == (220, 20, 60)
    assert drawn(tmp_path) == ["222..."] * 4
    write_xml(tmp_path, box("0 0 3 4", "tree"), labels="")
    assert classes_of(tmp_path, params(CVAT)).names == ("background", "tree")


def test_frames_of_a_video_are_found_without_a_suffix(tmp_path: Path) -> None:
    write_xml(tmp_path, box("0 0 3 4"), images='<image name="frame_000000" width="6" height="4">{}</image>')
    write(tmp_path / "images/frame_000000.PNG", encoded(noise(4, 6)))
    assert [name for name, sample in found(tmp_path, params(CVAT))[0].items() if sample.mask] == ["frame_000000"]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ('<polygon label="car" points="1,1;2,2"/>', "polygon 1 has 4 coordinates"),
        ('<polygon label="car" points="1,1;2;3,3"/>', "polygon 1 has points that are not numbers"),
        ('<polygon label="car"/>', "polygon 1 has points that are not numbers"),
        ('<polygon label="car" points="1,1;2,2;nan,3"/>', "polygon 1 has a point at nan"),
        ('<polygon points="1,1;2,2;3,3"/>', "has label ''"),
        ('<polygon label="cat" points="1,1;2,2;3,3"/>', "has label 'cat'"),
        ('<box label="car" xtl="1"/>', "box 1 has a point at nan"),
        (box("1 1 3 3", rotation="up"), "box 1 has rotation 'up'"),
        (box("1 1 3 3", rotation="inf"), "box 1 has rotation 'inf'"),
        (box("1 1 3 3", z_order="front"), "box 1 has z_order 'front'"),
        ('<cuboid label="car"/>', "cuboid 1 cannot be drawn"),
        ('<skeleton label="car"><points label="tree" points="1,1"/></skeleton>', "skeleton 1 cannot be drawn"),
        ('<mask label="car" rle="1,3" left="2" top="1" width="3" height="2"/>', "mask 1 has runs of 4 pixels in total"),
        ('<mask label="car" rle="6" left="2" top="1" width="3"/>', "mask 1 has height ''"),
        ('<mask label="car" left="2" top="1" width="3" height="2"/>', "mask 1 has rle ''"),
        (f'<mask label="car" rle="{"9" * 50}" left="0" top="0" width="1" height="1"/>', f"mask 1 has rle '{'9' * 20}'"),
    ],
)
def test_a_shape_that_cannot_be_drawn_is_reported(tmp_path: Path, shape: str, message: str) -> None:
    write_xml(tmp_path, shape)
    assert reported(tmp_path) == [("all.xml", f"for images/a.jpg: {message}")]


BOMB = """<!DOCTYPE b [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">
<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;"><!ENTITY d "&c;&c;&c;&c;&c;&c;&c;&c;&c;&c;">]>
<annotations><meta>&d;</meta></annotations>"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB.encode(), r"has a DOCTYPE, and its entities could fill"),
        (f'<?xml version="1.0" encoding="utf-16"?>{BOMB}'.encode("utf-16"), r"has a DOCTYPE"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotations/>', r"has a DOCTYPE"),
        (b"", r"is not XML \(no element found"),
        (b"<annotations>", r"is not XML \(no element found"),
        (b"<annotations>&lol;</annotations>", r"is not XML \(undefined entity"),
        (b"{}", r"is not XML \(not well-formed"),
        (b'<?xml version="1.0" encoding="klingon"?><annotations/>', r"is not XML \(unknown encoding"),
        (b'<?xml version="1.0" encoding="utf-7"?><annotations/>', r"is not XML"),
        (
            b"<annotation><folder/></annotation>",
            r"is XML that begins with <annotation>; expected <annotations> of CVAT for images",
        ),
        (b"<annotations><track><box/></track></annotations>", r"has tracks, as CVAT for video does"),
    ],
)
def test_a_file_that_is_not_cvat_is_reported_with_its_path(tmp_path: Path, text: bytes, message: str) -> None:
    write_xml(tmp_path)
    write(tmp_path / "all.xml", text)
    for read in (found, classes_of):
        with pytest.raises(UserError, match=rf"all\.xml: {message}"):
            read(tmp_path, params(CVAT))


def test_deeply_nested_xml_is_read(tmp_path: Path) -> None:
    write_xml(tmp_path, "<a>" * 500_000 + "</a>" * 500_000)
    assert reported(tmp_path) == [("all.xml", "for images/a.jpg: has label ''")]


LABELMAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncar:220,20,60::\na:b:10,20,30::\n"


def write_masks(raw: Path, name: str = "a", labelmap: str = LABELMAP) -> None:
    """Write a mask with two columns per label, and the image, which is not in the export."""
    colors = np.array([[0, 0, 0], [220, 20, 60], [10, 20, 30]], np.uint8).repeat(2, axis=0)
    write(raw / f"SegmentationClass/{name}.png", encoded(np.tile(colors, (4, 1, 1))))
    write(raw / f"SegmentationObject/{name}.png", encoded(np.tile(colors, (4, 1, 1))))
    write(raw / "labelmap.txt", labelmap)
    write(raw / f"images/{name}.jpg", encoded(noise(4, 6), "JPEG"))


def test_color_masks_have_the_classes_of_the_labelmap(tmp_path: Path) -> None:
    write_masks(tmp_path)
    assert classes_of(tmp_path, params(MASKS)).names == ("background", "car", "a:b")
    assert classes_of(tmp_path, params(MASKS)).colors[1] == (220, 20, 60)
    assert drawn(tmp_path, MASKS) == ["..1122"] * 4
    changes = {"classes": {"rest": ["background", "a:b"], "car": "car"}}
    assert drawn(tmp_path, MASKS, **changes) == ["..11.."] * 4


def test_the_export_can_stay_packed_next_to_its_images(tmp_path: Path) -> None:
    write_masks(tmp_path / "export", "day 1/a")
    write(tmp_path / "export/ImageSets/Segmentation/Train.txt", '"day 1/a"\n')
    write(tmp_path / "export/ImageSets/Segmentation/default.txt", "day 1/a\n")
    (tmp_path / "raw").mkdir()
    shutil.move(tmp_path / "export/images", tmp_path / "raw/images")
    shutil.make_archive(str(tmp_path / "raw/task"), "zip", tmp_path / "export")
    samples, problems = found(tmp_path / "raw", params(MASKS))
    assert [(sample.id, sample.split) for sample in samples.values()] == [("day 1/a", "train")] and not problems
    assert drawn(tmp_path / "raw", MASKS) == ["..1122"] * 4


def test_mistakes_in_the_lists_and_the_labelmap_are_reported(tmp_path: Path) -> None:
    write_masks(tmp_path, labelmap="background:0,0,0::\ncar:300,0,0::\ntree\n")
    with pytest.raises(UserError) as error:
        classes_of(tmp_path, params(MASKS))
    assert [problem.found for problem in error.value.problems] == ["'car:300,0,0::'", "'tree'"]
    for split in ("train", "val"):
        write(tmp_path / f"ImageSets/Segmentation/{split}.txt", "a\n")
    _, [problem, *_] = found(tmp_path, params(MASKS))
    assert problem.found == "lists a, which is also in ImageSets/Segmentation/val.txt"
    write(tmp_path / "ImageSets/Segmentation/val.txt", b"\xff")
    with pytest.raises(UserError, match=r"val\.txt: is not UTF-8 text"):
        found(tmp_path, params(MASKS))
    (tmp_path / "labelmap.txt").unlink()
    with pytest.raises(UserError, match=r"labelmap\.txt: is missing; expected a line name:red,green,blue"):
        classes_of(tmp_path, params(MASKS))
