"""Layout `labelme`: one JSON file per photo, in the same folder or elsewhere.

raw/street1/0001.jpg   raw/street1/0001.json   raw/labels.txt
"""

import base64
import math
import posixpath
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from pspnet.config.dataset import LabelmeParams
from pspnet.errors import Problem, UserError
from pspnet.raw.classes import Declared
from pspnet.raw.files import RawFile, RawFiles
from pspnet.raw.images import Refused
from pspnet.raw.layouts.annotations import (
    Entry,
    LayoutFiles,
    content,
    json_object,
    matched,
    size_in,
    sort_files,
    split_of_folders,
)  # fmt: skip
from pspnet.raw.layouts.labels import BACKGROUND, Labels
from pspnet.raw.layouts.pairs import SUFFIXES, FoundImage
from pspnet.raw.masks import RawMask
from pspnet.raw.problems import located, shortened
from pspnet.raw.shapes import Drawing, Picture, Shape, box, ellipse, line, numbers, polygon

LABELS = "labels.txt"

Json = dict[str, Any]


class Document(NamedTuple):
    file: RawFile
    image: str | None  # imagePath in the file
    has_copy: bool  # whether imageData contains a copy of the image
    size: tuple[Any, Any]
    shapes: list[Json]


def find(source: LabelmeParams, raw: RawFiles) -> Iterator[FoundImage | Problem]:
    files = sort_files(raw, source.annotations, source.images)
    documents, problems = _documents(raw, files)
    labels = _labels(raw, files, documents)
    photos = {file.name for file in files.images.files}
    entries = []
    for document in documents:
        if photo := _photo(document, photos):
            mask = partial(_drawing, document, labels, source.line_width_px)
            entries.append(Entry(document.file.path, photo, split_of_folders(document.file.name), mask))
        else:
            fix = "Put it next to this file. The copy in imageData is not read." if document.has_copy else ""
            found = f"annotates the photo {document.image!r:.200}, which is missing"
            expected = f"an image in '{source.images}'"
            problems.append(Problem(document.file.path, found, expected, fix, "mask_without_image"))
    if problems and not entries:
        raise UserError(shortened(located(problems, raw.root)))
    yield from [*files.problems, *problems]
    yield from matched(entries, files.images)


def classes(source: LabelmeParams, raw: RawFiles) -> Declared:
    files = sort_files(raw, source.annotations, source.images)
    documents, problems = ([], []) if LABELS in files.others else _documents(raw, files)
    if problems and not documents:
        raise UserError(shortened(located(problems, raw.root)))
    return _labels(raw, files, documents).declared()


def _documents(raw: RawFiles, files: LayoutFiles) -> tuple[list[Document], list[Problem]]:
    documents = []
    problems = []
    for file in files.annotations:
        try:
            documents.append(_document(file, json_object(raw, file.path)))
        except Refused as refused:
            problems.append(refused.problem_at(file.path))
    return documents, problems


def _document(file: RawFile, content: Json) -> Document:
    shapes, image = content.get("shapes"), content.get("imagePath")
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise Refused("has no list of objects 'shapes'", "a file that labelme saved")
    for shape in shapes:
        if not isinstance(shape.get("label"), str):
            raise Refused(f"has a shape with label {shape.get('label')!r:.60}", "text")
    size = content.get("imageHeight"), content.get("imageWidth")
    return Document(file, image if isinstance(image, str) else None, bool(content.get("imageData")), size, shapes)


def _labels(raw: RawFiles, files: LayoutFiles, documents: list[Document]) -> Labels:
    if LABELS not in files.others:
        return Labels(sorted({shape["label"] for document in documents for shape in document.shapes}))
    path = files.others[LABELS].path
    try:
        return Labels(content(raw, path).decode("utf-8-sig").splitlines())
    except UnicodeDecodeError:
        raise UserError(Problem(str(raw.root / path), "is not UTF-8 text", "one label per line")) from None
    except Refused as refused:
        raise UserError(refused.problem_at(str(raw.root / path))) from None


def _photo(document: Document, photos: Collection[str]) -> str | None:
    """Return the photo at imagePath or, if both files were moved or renamed together, the photo next to the JSON
    file.
    """
    folder, name = posixpath.split(document.file.name)
    places = [posixpath.join(folder, f"{PurePosixPath(name).stem}{suffix}") for suffix in SUFFIXES]
    if document.image:
        path = document.image.replace("\\", "/")
        places = [posixpath.join(folder, path), posixpath.join(folder, posixpath.basename(path)), *places]
    return next((place for place in map(posixpath.normpath, places) if place in photos), None)


def _drawing(document: Document, labels: Labels, line_width_px: int, image: str) -> RawMask:
    shapes = [
        part
        for place, shape in enumerate(document.shapes, start=1)
        for part in _shapes(f"shape {place}", labels.number(shape["label"]), shape, line_width_px)
    ]
    return Drawing(document.file.path, size_in(*document.size), BACKGROUND, tuple(shapes), image)


def _shapes(name: str, number: int, shape: Json, line_width_px: int) -> Sequence[Shape]:
    points = shape.get("points")
    match shape.get("shape_type") or "polygon":
        case "polygon" | "oriented_rectangle":
            return [polygon(name, number, points)]
        case "rectangle":
            return [box(name, number, points)]
        case "circle":
            x, y, edge_x, edge_y = numbers(name, points, at_least=4, at_most=4)
            radius = math.hypot(edge_x - x, edge_y - y)
            return [ellipse(name, number, (x, y, radius, radius))]
        case "line" | "linestrip":
            return line(name, number, points, line_width_px) if line_width_px else []
        case "point" | "points":
            places = numbers(name, points, at_least=2)
            pairs = zip(places[::2], places[1::2], strict=True)
            return [part for pair in pairs for part in line(name, number, pair, line_width_px)] if line_width_px else []
        case "mask":
            left, top, right, bottom = map(round, numbers(name, points, at_least=4, at_most=4))
            return [Picture(name, number, left, top, right - left + 1, bottom - top + 1, _picture(name, shape))]
    raise Refused(
        f"{name} is a {shape['shape_type']!r:.60}", "polygon, rectangle, circle, line, linestrip, point or mask"
    )


def _picture(name: str, shape: Json) -> bytes:
    try:
        return base64.b64decode(shape["mask"], validate=True)
    except (KeyError, TypeError, ValueError):
        raise Refused(f"{name} has a mask that is not base64", "a PNG as labelme saves it") from None
