"""Layouts `coco` and `coco_panoptic`.

raw/images/train2017/000000000009.jpg   raw/annotations/instances_train2017.json
raw/images/val2017/000000000139.jpg     raw/annotations/panoptic_val2017.json   raw/masks/000000000139.png
"""

from collections import defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from pspnet.config.dataset import CocoPanopticParams, CocoParams
from pspnet.dataset.store.splits import Split
from pspnet.errors import Problem, UserError
from pspnet.raw.classes import Declared
from pspnet.raw.files import RawFile, RawFiles
from pspnet.raw.images import Refused
from pspnet.raw.layouts.annotations import Entry, Lookup, json_object, matched, size_in, sort_files, split_of_file
from pspnet.raw.layouts.labels import BACKGROUND, IGNORED, Labels
from pspnet.raw.layouts.pairs import FoundImage
from pspnet.raw.masks import COLOR, OneFile, RawMask, Values, colors_in
from pspnet.raw.problems import located, shortened
from pspnet.raw.shapes import Drawing, Shape, polygon, runs, uncompressed

Json = dict[str, Any]


class Document(NamedTuple):
    path: str
    split: Split | None
    categories: dict[Hashable, str]
    colors: dict[str, list[int]]  # by name, for the categories that have a color
    images: list[Json]
    annotations: dict[Hashable, list[Json]]  # by image id
    problems: list[Problem]

    def number(self, annotation: Json, name: str, labels: Labels) -> int:
        category = annotation.get("category_id")
        if not isinstance(category, int | str) or category not in self.categories:
            raise Refused(f"{name} has category {category!r:.60}", "a category that the file lists")
        return labels.number(self.categories[category])


@dataclass(frozen=True)
class PanopticMask(OneFile):
    """A mask in which colors are segment ids: R + 256 G + 65536 B; 0 is not annotated."""

    segments: tuple[tuple[int, int], ...]  # id, number

    def values(self, files: RawFiles, max_pixels: int, max_bytes: int) -> Values:
        colors, places = np.unique(
            colors_in(files.read(self.path, max_bytes), max_pixels) - np.uint32(COLOR), return_inverse=True
        )
        ids = colors >> 16 | colors & 0xFF00 | (colors & 0xFF) << 16
        known = {0: IGNORED, **dict(self.segments)}
        if unknown := [one for one in ids.tolist() if one not in known]:
            raise Refused(f"has segment {unknown[0]}", "only segments that segments_info lists")
        return np.array([known[one] for one in ids.tolist()], np.uint16)[places].reshape(places.shape)


def find(source: CocoParams, raw: RawFiles) -> Iterator[FoundImage | Problem]:
    files = sort_files(raw, source.annotations, source.images)
    documents = _documents(raw, files.annotations, "segmentation")
    labels = _labels(documents)
    entries = [
        Entry(document.path, image["file_name"], document.split, partial(_drawing, document, image, labels))
        for document in documents
        for image in document.images
    ]
    yield from [*files.problems, *(problem for document in documents for problem in document.problems)]
    yield from matched(entries, files.images)


def classes(source: CocoParams, raw: RawFiles) -> Declared:
    files = sort_files(raw, source.annotations, source.images)
    return _labels(_documents(raw, files.annotations, "segmentation")).declared()


def find_panoptic(source: CocoPanopticParams, raw: RawFiles) -> Iterator[FoundImage | Problem]:
    files = sort_files(raw, source.annotations, source.images, source.masks)
    documents = _documents(raw, files.annotations, "segments_info")
    labels = _labels(documents, without_background=True)
    yield from [*files.problems, *(problem for document in documents for problem in document.problems)]
    used: set[str] = set()
    entries = []
    for document in documents:
        for image in document.images:
            for annotation in document.annotations[image["id"]]:
                mask = partial(_panoptic_mask, document, annotation, labels, files.masks, used)
                entries.append(Entry(document.path, image["file_name"], document.split, mask))
    yield from matched(entries, files.images)
    for mask_file in sorted(files.masks.files):
        if mask_file.path not in used:
            yield Problem(mask_file.path, "is not named by any annotation", kind="mask_without_image")


def panoptic_classes(source: CocoPanopticParams, raw: RawFiles) -> Declared:
    files = sort_files(raw, source.annotations, source.images, source.masks)
    return _labels(_documents(raw, files.annotations, "segments_info"), without_background=True).declared()


def _drawing(document: Document, listed: Json, labels: Labels, image: str) -> RawMask:
    size = size_in(listed.get("height"), listed.get("width"))
    # Popped, because the parsed annotations and the shapes together take several times the file's size.
    annotations = document.annotations.pop(listed["id"])
    objects = [_shapes(document, annotation, size, labels) for annotation in annotations]
    objects.sort(key=lambda shapes: -sum(shape.area_px for shape in shapes))
    shapes = tuple(shape for shapes in objects for shape in shapes)
    return Drawing(document.path, size, BACKGROUND, shapes, image)


def _shapes(document: Document, annotation: Json, size: tuple[int, int] | None, labels: Labels) -> list[Shape]:
    name = f"annotation {annotation.get('id')!r:.60}"
    number = document.number(annotation, name, labels)
    match annotation.get("segmentation"):
        case [_, *_] as polygons:
            return [polygon(name, number, points) for points in polygons]
        case {"counts": str() | list() as counts, "size": [int() as height, int() as width]}:
            if size != (height, width):
                found = f"{name} has runs for {width} x {height} pixels"
                raise Refused(found, "the size that the file lists for the image")
            lengths = uncompressed(name, counts) if isinstance(counts, str) else counts
            return [runs(name, number, lengths, (0, 0, width, height), by_columns=True)]
    fix = "Export the objects with their outlines, because boxes are not enough to learn from."
    raise Refused(f"{name} has no segmentation", "polygons or runs of pixels", fix)


def _panoptic_mask(
    document: Document, annotation: Json, labels: Labels, masks: Lookup, used: set[str], _: str
) -> RawMask:
    name = annotation.get("file_name")
    if not isinstance(name, str):
        raise Refused("has no file_name for its mask", "the name of a PNG file")
    mask = masks.find(name, document.split).path
    used.add(mask)
    segments = []
    for segment in _objects(annotation, "segments_info"):
        if not isinstance(segment.get("id"), int):
            raise Refused(f"has a segment with id {segment.get('id')!r:.60}", "a whole number")
        segments.append((segment["id"], document.number(segment, f"segment {segment['id']}", labels)))
    return PanopticMask(mask, tuple(segments))


def _labels(documents: list[Document], *, without_background: bool = False) -> Labels:
    names = [name for document in documents for name in document.categories.values()]
    colors = {name: color for document in documents for name, color in document.colors.items()}
    return Labels(names, colors, without_background=without_background)


def _documents(raw: RawFiles, annotations: list[RawFile], key: str) -> list[Document]:
    """Return the annotation files. Every annotation must have `key`."""
    documents = []
    problems = []
    for file in annotations:
        try:
            documents.append(_document(file, json_object(raw, file.path), key))
        except Refused as refused:
            problems.append(refused.problem_at(file.path))
    if problems:  # if a file were skipped, some images would be lost
        raise UserError(shortened(located(problems, raw.root)))
    return documents


def _document(file: RawFile, content: Json, key: str) -> Document:
    categories: dict[Hashable, str] = {}
    colors = {}
    for category in _objects(content, "categories"):
        match category:
            case {"id": int() | str() as number, "name": str() as name}:
                if categories.setdefault(number, name) != name:
                    raise Refused(f"has two categories with id {number!r:.60}", "one")
            case _:
                raise Refused(f"has a category {category!r:.60}", "an id and a name for each")
        match category:
            case {"color": [int() as red, int() as green, int() as blue]}:
                colors[name] = [red, green, blue]
    images = []
    annotations: dict[Hashable, list[Json]] = defaultdict(list)
    problems = []
    for image in _objects(content, "images"):
        match image:
            case {"id": int() | str() as number, "file_name": str()} if number not in annotations:
                annotations[number] = []
                images.append(image)
            case _:
                found = f"has an image {image!r:.90}"
                problems.append(Problem(file.path, found, "a file_name and a unique id", kind="unreadable"))
    unknown_owners: dict[str, int] = defaultdict(int)
    for annotation in _objects(content, "annotations"):
        _check_kind(annotation, key)
        owner = annotation.get("image_id")
        if isinstance(owner, int | str) and owner in annotations:
            annotations[owner].append(annotation)
        else:
            unknown_owners[f"{owner!r:.60}"] += 1
    for owner, count in unknown_owners.items():
        found = f"has {count:,} annotations of image {owner}, which it does not list"
        problems.append(Problem(file.path, found, "annotations of listed images", kind="mask_without_image"))
    split = split_of_file(file.name)
    return Document(file.path, split, categories, colors, images, annotations, problems)


def _check_kind(annotation: Json, key: str) -> None:
    other, layout = ("segments_info", "coco_panoptic") if key == "segmentation" else ("segmentation", "coco")
    if key not in annotation and other in annotation:
        fix = f"Set dataset.source.layout: {layout} in params.yaml."
        raise Refused(f"has annotations with {other}", f"annotations with {key}", fix)


def _objects(content: Json, key: str) -> list[Json]:
    match content.get(key):
        case list() as items if all(isinstance(item, dict) for item in items):
            return items
    raise Refused(f"has no list of objects '{key}'", "lists of images, annotations and categories")
