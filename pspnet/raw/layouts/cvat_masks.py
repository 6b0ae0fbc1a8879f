"""Layout `cvat_masks`: CVAT's export format "Segmentation mask 1.1", with the images, which CVAT often leaves out.

raw/export.zip with labelmap.txt, SegmentationClass/0001.png, ImageSets/Segmentation/train.txt   raw/images/0001.jpg
"""

from collections.abc import Iterator
from pathlib import PurePosixPath

from pspnet.config.dataset import CvatMasksParams
from pspnet.dataset.store.splits import Split
from pspnet.errors import Problem, UserError
from pspnet.raw.classes import Declared
from pspnet.raw.files import RawFile, RawFiles
from pspnet.raw.images import Refused
from pspnet.raw.layouts.pairs import SPLIT_FOLDERS, FoundImage, Naming, once_listed, pairs
from pspnet.raw.masks import Colors
from pspnet.raw.problems import shortened

LABELS = "labelmap.txt"
LISTS = "ImageSets/Segmentation"
MOST_BYTES = 10**8  # maximum size of a text file


def find(source: CvatMasksParams, raw: RawFiles) -> Iterator[FoundImage | Problem]:
    listed, problems = _listed(source, raw)
    naming = Naming(source.images, source.masks, r"(.*)\.\w+", r"(.*)\.png", other_names=r".*\.(txt|xml)")
    yield from problems
    yield from pairs(naming, raw, lambda paths: Colors(paths[0]), listed.get)


def classes(source: CvatMasksParams, raw: RawFiles) -> Declared:
    place = PurePosixPath(source.masks).parent
    path = _texts(source, raw).get(LABELS)
    if path is None:
        expected = "a line name:red,green,blue:: for each label"
        fix = "Copy it from CVAT's export."
        raise UserError(Problem(str(raw.root / place / LABELS), "is missing", expected, fix))
    labels = {}
    problems = []
    for number, line in enumerate(_lines(raw, path), start=1):
        name, color, *_ = [*line.rsplit(":", 3), ""]
        parts = color.split(",")
        if len(parts) == 3 and all(part.strip().isdecimal() and int(part) < 256 for part in parts):
            labels[name] = "#{:02x}{:02x}{:02x}".format(*map(int, parts))
        elif not line.startswith("#"):
            where = f"{raw.root / path} line {number}"
            problems.append(Problem(where, f"'{line[:60]}'", "name:red,green,blue::"))
    if problems:
        raise UserError(shortened(problems))
    return Declared(labels, {}, [])


def _listed(source: CvatMasksParams, raw: RawFiles) -> tuple[dict[str, Split], list[Problem]]:
    lists: dict[Split, tuple[str, list[str]]] = {}
    for name, path in sorted(_texts(source, raw).items()):
        split = SPLIT_FOLDERS.get(PurePosixPath(name).stem.lower())
        if split and str(PurePosixPath(name).parent) == LISTS:
            lists[split] = path, [line.strip('"') for line in _lines(raw, path)]
    return once_listed(lists)


def _texts(source: CvatMasksParams, raw: RawFiles) -> dict[str, str]:
    """Map the text files in the masks folder's parent to their paths, by name relative to the parent."""
    place = PurePosixPath(source.masks).parent
    files = [file for file in raw.below(str(place)) if isinstance(file, RawFile) and file.name.endswith(".txt")]
    return {str(PurePosixPath(file.name).relative_to(place)): file.path for file in files}


def _lines(raw: RawFiles, path: str) -> list[str]:
    try:
        lines = raw.read(path, MOST_BYTES).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(Problem(str(raw.root / path), "is not UTF-8 text")) from None
    except Refused as refused:
        raise UserError(refused.problem_at(str(raw.root / path))) from None
    return [line.strip() for line in lines if line.strip()]
