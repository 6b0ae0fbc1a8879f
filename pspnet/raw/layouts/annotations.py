"""Images that are listed by name in annotation files."""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from operator import eq
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from pspnet.dataset.store.splits import Split
from pspnet.errors import Problem, UserError
from pspnet.raw.files import RawFile, RawFiles, TooManyBytes
from pspnet.raw.images import Refused
from pspnet.raw.layouts.pairs import SPLIT_FOLDERS, SUFFIXES, FoundImage, check_folders
from pspnet.raw.masks import RawMask
from pspnet.raw.problems import located, shortened
from pspnet.raw.shapes import numbers

# An annotation file takes seven times its size in memory. COCO's is 0.5 GB and LVIS's is 1.1 GB.
MOST_BYTES = 2 * 10**9
OTHERS = re.compile(r".*\.(json|xml|txt|yaml|csv|md|pdf)", re.IGNORECASE)  # other files that may be among the images
SPLIT_WORD = re.compile(rf"(?<![a-z])({'|'.join(SPLIT_FOLDERS)})(?![a-z])", re.IGNORECASE)
SPLIT_FOLDER = re.compile(rf"({'|'.join(SPLIT_FOLDERS)})\d*", re.IGNORECASE)  # train2017


class Entry(NamedTuple):
    """An image listed in an annotation file."""

    source: str  # path of the annotation file
    image: str  # the name in the annotation file
    split: Split | None
    mask: Callable[[str], RawMask]  # takes the path of the image and can raise Refused


class Lookup:
    """Look up files by the names that annotations use. Leading folders may be missing on either side; suffixes may be
    missing in annotations: CVAT writes no suffixes for video frames.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.files: list[RawFile] = []
        self._by_name: dict[str, list[RawFile]] = defaultdict(list)

    def add(self, file: RawFile) -> None:
        self.files.append(file)
        for name in {PurePosixPath(file.name).name, PurePosixPath(file.name).stem}:
            self._by_name[name].append(file)

    def id(self, file: RawFile) -> str:
        return str(PurePosixPath(file.name).relative_to(self.folder).with_suffix(""))

    def find(self, name: str, split: Split | None) -> RawFile:
        wanted = PurePosixPath(name.replace("\\", "/")).parts
        found = [
            file
            for file in (self._by_name[wanted[-1]] if wanted and wanted[-1] in self._by_name else ())
            if all(map(eq, reversed(self._parts(file)[:-1]), reversed(wanted[:-1])))
        ]
        if len(found) > 1:
            found = [file for file in found if split_of_folders(file.name) == split] or found
        if len(found) > 1:
            found = [file for file in found if self._parts(file) == wanted] or found
        if not found:
            fix = "Add it, or remove it from the annotations."
            raise Refused(
                f"lists {name!r:.200}, which is missing", f"a file in '{self.folder}'", fix, "mask_without_image"
            )
        if len(found) > 1:
            where = ", ".join(sorted(file.path for file in found))
            fix = "Write the folder in front of its name."
            raise Refused(
                f"lists {name!r:.200}, which could be any of {where}", "one image with that name", fix, "ambiguous"
            )
        return found[0]

    def _parts(self, file: RawFile) -> tuple[str, ...]:
        return PurePosixPath(file.name).relative_to(self.folder).parts


class LayoutFiles(NamedTuple):
    images: Lookup
    masks: Lookup
    annotations: list[RawFile]  # sorted by name
    others: dict[str, RawFile]  # by name
    problems: list[Problem]


def sort_files(raw: RawFiles, annotations: str, images: str, masks: str | None = None) -> LayoutFiles:
    """Sort the raw files into images, masks, annotations and others. A file belongs to the nearest folder given."""
    check_folders(images=images, **({"masks": masks} if masks else {}))
    pattern = re.compile(annotations)
    files = LayoutFiles(Lookup(images), Lookup(masks or images), [], {}, [])
    folders = {PurePosixPath(images): files.images} | ({PurePosixPath(masks): files.masks} if masks else {})
    for found in raw.below("."):
        if isinstance(found, Problem):
            files.problems.append(found)
            continue
        path = PurePosixPath(found.name)
        folder = next((folders[parent] for parent in path.parents if parent in folders), None)
        if pattern.fullmatch(found.name):
            files.annotations.append(found)
        elif folder and path.suffix.lower() in SUFFIXES:
            folder.add(found)
        elif not folder or OTHERS.fullmatch(found.name):
            files.others[found.name] = found
        else:
            fix = "Move it elsewhere."
            problem = Problem(
                found.path, "does not have the suffix of an image", " ".join(SUFFIXES), fix, "not_an_image"
            )
            files.problems.append(problem)
    missing = []
    for key, lookup in {"images": files.images, **({"masks": files.masks} if masks else {})}.items():
        if not lookup.files:
            fix = f"Put the {key} there, or change dataset.source.{key} in params.yaml."
            missing.append(Problem(str(raw.root / lookup.folder), f"has no {key}", " ".join(SUFFIXES), fix))
    if not files.annotations:
        fix = "Put the annotations there, or change dataset.source.annotations in params.yaml."
        missing.append(Problem(str(raw.root), "has no annotations", f"a path that matches {annotations}", fix))
    if missing:
        raise UserError(shortened([*missing, *located(files.problems, raw.root)]))
    files.annotations.sort()
    return files


def matched(entries: Iterable[Entry], images: Lookup) -> Iterator[FoundImage | Problem]:
    """Yield the images with their masks, sorted by id. An image that no annotation file lists has no mask."""
    listed: dict[str, list[Entry]] = defaultdict(list)  # path of an image -> its entries
    problems = []
    for entry in entries:
        try:
            listed[images.find(entry.image, entry.split).path].append(entry)
        except Refused as refused:
            problems.append(refused.problem_at(entry.source))
    if problems and not listed:
        raise UserError(shortened(problems))
    yield from problems
    by_id: dict[str, list[RawFile]] = defaultdict(list)
    for file in images.files:
        by_id[images.id(file)].append(file)
    for name, files in sorted(by_id.items()):
        for file in files:
            if len(files) > 1:
                others = ", ".join(sorted(other.path for other in files if other != file))
                fix = "Rename or remove one."
                problem = Problem(file.path, f"has the same id as {others}", "one image per id", fix, "ambiguous")
                yield FoundImage(name, file.path, problem=problem)
            else:
                yield _found(name, file, listed.get(file.path, []))


def _found(name: str, file: RawFile, entries: list[Entry]) -> FoundImage:
    if not entries:
        return FoundImage(name, file.path, split=split_of_folders(file.name))
    entry = entries[0]
    if len(entries) > 1:
        found = f"is listed {len(entries)} times: in {', '.join(sorted(entry.source for entry in entries))}"
        return FoundImage(name, file.path, problem=Problem(file.path, found, "once", kind="ambiguous"))
    try:
        mask = entry.mask(file.path)
    except Refused as refused:
        found = f"for {file.path}: {refused.found}"
        problem = Problem(entry.source, found, refused.expected, refused.fix, refused.kind)
        return FoundImage(name, file.path, problem=problem)
    return FoundImage(name, file.path, mask, entry.split or split_of_folders(file.name))


def content(raw: RawFiles, path: str) -> bytes:
    try:
        return raw.read(path, MOST_BYTES)
    except TooManyBytes as error:
        expected = f"annotation files of at most {MOST_BYTES / 1e6:,.0f} MB"
        raise Refused(f"is {error.size / 1e6:,.0f} MB", expected, "Export it in parts.") from None


def json_object(raw: RawFiles, path: str) -> dict[str, Any]:
    try:
        value = json.loads(content(raw, path))
    except (ValueError, RecursionError) as error:
        raise Refused(f"is not JSON ({error})", "a complete JSON file") from None
    if not isinstance(value, dict):
        raise Refused(f"contains {type(value).__name__}, not an object", "JSON that begins with {")
    return value


def size_in(height: Any, width: Any) -> tuple[int, int] | None:
    """Return (height, width), or None to use the image's size."""
    if height is None and width is None:
        return None
    height_px, width_px = numbers("its size", (height, width), at_least=2, at_most=2)
    if min(height_px, width_px) < 1 or (height_px, width_px) != (int(height_px), int(width_px)):
        raise Refused(f"has height {height_px:g} and width {width_px:g}", "whole numbers of pixels")
    return int(height_px), int(width_px)


def split_of_file(name: str) -> Split | None:
    """Return the split given by a word in the file's name or, failing that, by its folders."""
    words = {SPLIT_FOLDERS[word.lower()] for word in SPLIT_WORD.findall(PurePosixPath(name).name)}
    return words.pop() if len(words) == 1 else split_of_folders(name)


def split_of_folders(name: str) -> Split | None:
    """Return the split of the nearest folder that is named after a split."""
    for folder in reversed(PurePosixPath(name).parts[:-1]):
        if match := SPLIT_FOLDER.fullmatch(folder):
            return SPLIT_FOLDERS[match.group(1).lower()]
    return None
