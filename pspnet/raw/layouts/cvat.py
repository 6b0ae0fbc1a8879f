"""Layout `cvat`: CVAT's export format "CVAT for images 1.1".

raw/annotations.xml   raw/images/Train/0001.jpg
"""

import math
import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple
from xml.etree import ElementTree

from pspnet.config.dataset import CvatParams
from pspnet.errors import Problem, UserError
from pspnet.raw.classes import Declared
from pspnet.raw.files import RawFile, RawFiles
from pspnet.raw.images import Refused
from pspnet.raw.layouts.annotations import Entry, content, matched, size_in, sort_files, split_of_file
from pspnet.raw.layouts.labels import BACKGROUND, Labels
from pspnet.raw.layouts.pairs import SPLIT_FOLDERS, FoundImage
from pspnet.raw.masks import RawMask
from pspnet.raw.problems import located, shortened
from pspnet.raw.shapes import Drawing, Shape, box, ellipse, line, polygon, runs

OF_THE_WHOLE_IMAGE = "tag"
COLOR = re.compile("#[0-9a-fA-F]{6}")

Attributes = dict[str, str]


class Image(NamedTuple):
    attributes: Attributes
    shapes: list[tuple[str, Attributes]]


class Document(NamedTuple):
    file: RawFile
    labels: dict[str, list[int]]  # label -> color, empty if the label has none
    images: list[Image]


def find(source: CvatParams, raw: RawFiles) -> Iterator[FoundImage | Problem]:
    files = sort_files(raw, source.annotations, source.images)
    documents = _documents(raw, files.annotations)
    labels = _labels(documents)
    entries = []
    for document in documents:
        for image in document.images:
            subset = SPLIT_FOLDERS.get(image.attributes.get("subset", "").lower())
            split = subset or split_of_file(document.file.name)
            mask = partial(_drawing, document.file.path, image, labels, source.line_width_px)
            entries.append(Entry(document.file.path, image.attributes.get("name", ""), split, mask))
    yield from files.problems
    yield from matched(entries, files.images)


def classes(source: CvatParams, raw: RawFiles) -> Declared:
    return _labels(_documents(raw, sort_files(raw, source.annotations, source.images).annotations)).declared()


class _Reader:
    """The target of the XML parser. Its memory grows only with the labels and shapes it keeps."""

    def __init__(self) -> None:
        self.labels: dict[str, list[int]] = {}
        self.images: list[Image] = []
        self._path: list[str] = []
        self._text = self._label = ""

    def doctype(self, *_: str | None) -> None:
        raise Refused("has a DOCTYPE, and its entities could fill the memory", "XML as CVAT exports it")

    def start(self, tag: str, attributes: Attributes) -> None:
        if not self._path and tag != "annotations":
            raise Refused(f"is XML that begins with <{tag}>", "<annotations> of CVAT for images")
        if tag == "track":
            raise Refused("has tracks, as CVAT for video does", "an export as CVAT for images")
        if tag == "image" and len(self._path) == 1:
            self.images.append(Image(attributes, []))
        elif len(self._path) == 2 and self._path[1] == "image" and tag != OF_THE_WHOLE_IMAGE:
            self.images[-1].shapes.append((tag, attributes))
        self._path.append(tag)
        self._text = ""

    def data(self, text: str) -> None:
        if self._path[-3:-1] == ["labels", "label"]:
            self._text += text

    def end(self, tag: str) -> None:
        if self._path[-3:] == ["labels", "label", "name"]:
            self._label = self._text
            self.labels[self._label] = []
        elif self._path[-3:] == ["labels", "label", "color"] and COLOR.fullmatch(self._text):
            self.labels[self._label] = list(bytes.fromhex(self._text[1:]))
        self._path.pop()

    def close(self) -> None:
        """Required by the parser."""


def _documents(raw: RawFiles, annotations: list[RawFile]) -> list[Document]:
    documents = []
    problems = []
    for file in annotations:
        reader = _Reader()
        parser = ElementTree.XMLParser(target=reader)  # noqa: S314  the reader rejects entities, the danger in XML
        try:
            parser.feed(content(raw, file.path))
            parser.close()
            documents.append(Document(file, reader.labels, reader.images))
        except Refused as refused:
            problems.append(refused.problem_at(file.path))
        except (ElementTree.ParseError, ValueError, LookupError) as error:  # the last two are raised by bad encodings
            problems.append(Problem(file.path, f"is not XML ({error})", "a complete XML file", kind="unreadable"))
    if problems:  # if a file were skipped, some images would be lost
        raise UserError(shortened(located(problems, raw.root)))
    return documents


def _labels(documents: list[Document]) -> Labels:
    """Return the labels that the projects and tasks declare or, failing that, the labels that occur."""
    declared = {name: color for document in documents for name, color in document.labels.items()}
    used = {shape.get("label", "") for document in documents for image in document.images for _, shape in image.shapes}
    return Labels(declared or sorted(used), {name: color for name, color in declared.items() if color})


def _drawing(path: str, image: Image, labels: Labels, line_width_px: int, found: str) -> RawMask:
    layers: list[tuple[int, Shape]] = []
    for place, (kind, shape) in enumerate(image.shapes, start=1):
        name = f"{kind} {place}"
        number, layer = labels.number(shape.get("label", "")), _whole(name, shape, "z_order", "0")
        layers += [(layer, part) for part in _shapes(name, number, kind, shape, line_width_px)]
    layers.sort(key=lambda pair: pair[0])  # a stable sort, so shapes in one layer keep their order
    size = size_in(image.attributes.get("height"), image.attributes.get("width"))
    return Drawing(path, size, BACKGROUND, tuple(shape for _, shape in layers), found)


def _shapes(name: str, number: int, kind: str, shape: Attributes, line_width_px: int) -> Sequence[Shape]:
    points = [pair.split(",") for pair in shape.get("points", "").split(";")]
    turned = _degrees(name, shape)
    match kind:
        case "polygon":
            return [polygon(name, number, points)]
        case "box":
            return [box(name, number, [shape.get(key) for key in ("xtl", "ytl", "xbr", "ybr")], turned)]
        case "ellipse":
            return [ellipse(name, number, [shape.get(key) for key in ("cx", "cy", "rx", "ry")], turned)]
        case "mask":
            left, top, width, height = (_whole(name, shape, key) for key in ("left", "top", "width", "height"))
            counts = [_whole(name, {"rle": count}, "rle") for count in shape.get("rle", "").split(",")]
            return [runs(name, number, counts, (left, top, width, height), by_columns=False)]
        case "polyline":
            return line(name, number, points, line_width_px) if line_width_px else []
        case "points":
            discs = [line(name, number, point, line_width_px) for point in points] if line_width_px else []
            return [part for disc in discs for part in disc]
    raise Refused(f"{name} cannot be drawn", "polygon, box, ellipse, mask, polyline or points")


def _whole(name: str, shape: Attributes, key: str, default: str = "") -> int:
    text = shape.get(key, default).strip()
    if not re.fullmatch(r"-?\d{1,9}", text):
        raise Refused(f"{name} has {key} '{text[:20]}'", "a whole number")
    return int(text)


def _degrees(name: str, shape: Attributes) -> float:
    try:
        degrees = float(shape.get("rotation", "0"))
    except ValueError:
        degrees = math.nan
    if not math.isfinite(degrees):
        raise Refused(f"{name} has rotation '{shape['rotation'][:20]}'", "degrees")
    return degrees
