"""Fuzzes annotation files in each supported format: COCO, panoptic COCO, labelme, CVAT."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from pspnet.errors import Problem, UserError
from pspnet.raw.files import RawFiles
from pspnet.raw.images import Refused
from pspnet.raw.layouts import LAYOUTS
from pspnet.raw.layouts.pairs import FoundImage
from tests.fuzz._edits import nearly
from tests.raw.found_images import params
from tests.raw.rawdata import encoded, noise, write

MOST_PIXELS, MOST_BYTES = 10**6, 10**7
PHOTO, SEGMENTS = encoded(noise(4, 6), "JPEG"), encoded(noise(4, 6))
DRAWN = {"images": ".", "line_width_px": 2}
SOURCES: dict[bytes, tuple[dict[str, Any], str]] = {
    b"c": ({"layout": "coco", "images": ".", "annotations": r".*\.json"}, "a.json"),
    b"p": ({"layout": "coco_panoptic", "images": ".", "masks": "segments", "annotations": r".*\.json"}, "a.json"),
    b"l": ({"layout": "labelme", "annotations": r".*\.json", **DRAWN}, "a.json"),
    b"v": ({"layout": "cvat", "annotations": r".*\.xml", **DRAWN}, "a.xml"),
}


def one(data: bytes, folder: Path) -> None:
    """Read a file in the format that the first byte selects. The result is masks or problems, all of them printable."""
    source, name = SOURCES.get(data[:1], SOURCES[b"c"])
    write(folder / "a.jpg", PHOTO)
    write(folder / "segments/a.png", SEGMENTS)
    write(folder / name, data[1:])
    dataset, files = params(source), RawFiles(folder)
    layout = LAYOUTS[dataset.source.layout]
    items: list[FoundImage | Problem] = []
    try:
        items += layout.find(dataset.source, files)
        layout.classes(dataset.source, files)
    except UserError as error:
        str(error).encode()
    for item in items:
        if isinstance(item, Problem):
            str(item).encode()
            continue
        item.id.encode()
        if item.mask:
            with suppress(Refused):
                assert item.mask.values(files, MOST_PIXELS, MOST_BYTES).ndim == 2


IMAGE = {"id": 1, "file_name": "a.jpg", "height": 4, "width": 6}
CATEGORIES = [{"id": 7, "name": "car", "isthing": 1, "color": [1, 2, 3]}, {"id": 3, "name": "tree", "isthing": 0}]
odd: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from([None, True, 0, 1.5, 7, 2**31, 10**30, 1e308, float("nan"), "", "a.jpg", "car", "\ud800", "\x1b"])
    | st.integers(-10, 10) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def seldom(usual: Any) -> st.SearchStrategy[Any]:
    """A strategy that usually draws the normal value and sometimes an odd one."""
    return st.integers(0, 11).flatmap(lambda draw: st.just(usual) if draw else odd)


def like(content: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({key: value if isinstance(value, st.SearchStrategy) else seldom(value)
                                  for key, value in content.items()})  # fmt: skip


coordinates = st.floats(-1e3, 1e3) | st.sampled_from([0, 1, 3, 1e7, 1e308, float("inf"), float("nan"), -1])
polygons = st.lists(st.lists(coordinates, max_size=10), max_size=3)
counts = st.lists(st.integers(-2, 30) | st.just(2**40), max_size=8) | st.text("0123456789PTabo`", max_size=20)
runs = st.fixed_dictionaries({"size": seldom([4, 6]), "counts": counts})
objects = like({"id": 5, "image_id": 1, "category_id": 7, "iscrowd": 0, "bbox": [1, 1, 2, 2],
                "segmentation": polygons | runs | odd})  # fmt: skip
segments = like(
    {"image_id": 1, "file_name": "a.png", "segments_info": st.lists(like({"id": 5, "category_id": 7}), max_size=3)}
)


def coco(annotations: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    images = st.lists(like(IMAGE), max_size=2)
    return like({"images": images, "annotations": st.lists(annotations, max_size=4), "categories": CATEGORIES}) | odd


points = st.lists(st.lists(coordinates, min_size=2, max_size=2), max_size=6) | odd
kinds = st.sampled_from(["polygon", "rectangle", "circle", "line", "linestrip", "points", "point", "mask", "other"])
shapes = st.fixed_dictionaries(
    {"label": seldom("car"), "points": points, "shape_type": kinds}, optional={"mask": odd, "flags": odd}
)
photo = like({"shapes": st.lists(shapes, max_size=4), "imagePath": "a.jpg", "imageHeight": 4, "imageWidth": 6}) | odd
pairs = st.lists(coordinates, min_size=2, max_size=8).map(lambda all_: ";".join(f"{x},{x}" for x in all_))
values = pairs | coordinates.map(str) | st.text(max_size=6) | st.just("2, 3, 1")
tags = st.sampled_from(["polygon", "box", "ellipse", "mask", "polyline", "points", "cuboid"])
names = [
    "points",
    "xtl",
    "ytl",
    "xbr",
    "ybr",
    "cx",
    "cy",
    "rx",
    "ry",
    "rle",
    "left",
    "top",
    "width",
    "height",
    "z_order",
    "rotation",
]


def _attribute(name: str, value: str) -> str:
    plain = "".join(letter if letter.isalnum() or letter in ",.;-+ " else f"&#{ord(letter)};" for letter in value)
    return f'{name}="{plain}"'


def _xml(drawn: list[tuple[str, dict[str, str]]]) -> bytes:
    inner = "".join(f"<{tag} label='car' {' '.join(_attribute(*item) for item in own.items())}/>" for tag, own in drawn)
    labels = "<meta><task><labels><label><name>car</name><color>#dc143c</color></label></labels></task></meta>"
    image = f'<image id="0" name="a.jpg" width="6" height="4">{inner}</image>'
    return f"<annotations>{labels}{image}</annotations>".encode(errors="replace")


xml = st.lists(st.tuples(tags, st.dictionaries(st.sampled_from(names), values)), max_size=4).map(_xml)
BOMB = (
    b'<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">' + b"".join(
        b'<!ENTITY %c "%b">' % (98 + n, b"&%c;" % (97 + n) * 10) for n in range(9)
    ) + b"]><annotations>&j;</annotations>"
)  # fmt: skip


def _marked(kind: bytes, contents: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    return contents.map(json.dumps).map(lambda text: kind + text.encode())


INPUTS = st.one_of(
    _marked(b"c", coco(objects)),
    _marked(b"p", coco(segments)),
    _marked(b"l", photo),
    xml.map(lambda data: b"v" + data),
    nearly([b"v" + BOMB, b"v" + _xml([("box", {"xtl": "1", "ytl": "1", "xbr": "3", "ybr": "3"})])]),
    nearly([b"c" + json.dumps({"images": [IMAGE], "annotations": [], "categories": CATEGORIES}).encode()]),
    st.tuples(st.sampled_from(b"cplv"), st.sampled_from([b"[", b'{"a":', b"<a>"]), st.integers(1, 100_000)).map(
        lambda parts: bytes([parts[0]]) + parts[1] * parts[2]
    ),
)
