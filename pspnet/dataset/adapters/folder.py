"""Layout `folder`: images and masks told apart and paired by their names, splits.csv for official splits.

raw/images/street1/0001.jpg   raw/masks/street1/0001.png   raw/splits.csv: id,split[,group]
"""

import csv
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pspnet.config.dataset import DatasetParams, SourceParams
from pspnet.dataset.masks import Colors, Instances, Levels, Numbers, RawMask
from pspnet.dataset.problems import located, shortened
from pspnet.dataset.raw import RawFile, RawFiles
from pspnet.dataset.raw_samples import RawSample
from pspnet.dataset.samples import SPLITS, Split
from pspnet.errors import Problem, UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")

Files = dict[str, list[str]]  # id -> paths below raw


class Listed(NamedTuple):
    split: Split
    group: str  # "" leaves it to the group pattern


def find(dataset: DatasetParams, raw: RawFiles) -> Iterator[RawSample | Problem]:
    """Samples in the order of their ids; a problem for each file that cannot be one."""
    source = dataset.source
    _check_folders(source)
    images, masks, problems = _files(source, raw)
    if not images or not masks:
        missing = [] if images else [_nothing(raw.root, "image", source.images, source.image_names)]
        missing += [] if masks else [_nothing(raw.root, "mask", source.masks, source.mask_names)]
        raise UserError(shortened([*missing, *located(problems, raw.root)]))
    if not images.keys() & masks.keys():
        raise UserError(_no_pair(source.masks, images, masks))
    listed = _listed(raw.root / "splits.csv", images)
    yield from problems
    for orphan in sorted(masks.keys() - images.keys()):
        for path in masks[orphan]:
            fix = f"Add the image {source.images}/{orphan} or remove the mask."
            yield Problem(path, "is a mask without an image", f"an image of id '{orphan}'", fix)
    for name in sorted(images):
        yield from _samples(name, images[name], masks.get(name, []), listed.get(name), dataset)


def _samples(
    name: str, images: list[str], masks: list[str], listed: Listed | None, dataset: DatasetParams
) -> Iterator[RawSample | Problem]:
    if len(images) > 1:
        for path in images:
            others = ", ".join(other for other in images if other != path)
            yield Problem(path, f"has the same id as {others}", "one image of each id", "Rename or remove one.")
        return
    if len(masks) > 1 and dataset.source.mask_kind != "instances":
        yield Problem(images[0], f"has {len(masks)} masks: {', '.join(masks)}", "one", "Remove all but one.")
        return
    group_pattern = dataset.group_pattern
    match = re.match(group_pattern, name)
    group = (listed and listed.group) or (match and match.group(1))
    if not group:
        expected = f"a group by dataset.group_pattern {group_pattern}"
        yield Problem(images[0], f"id '{name}' names no group", expected, "Change the pattern or rename the file.")
        return
    mask = _mask(masks, dataset.source) if masks else None
    yield RawSample(name, images[0], mask, group, listed.split if listed else None)


def _mask(paths: list[str], source: SourceParams) -> RawMask:
    match source.mask_kind:
        case "numbers":
            return Numbers(paths[0])
        case "colors":
            return Colors(paths[0])
        case "levels":
            return Levels(paths[0], source.mask_threshold)
        case "instances":
            return Instances(tuple(paths), source.mask_threshold)


def _check_folders(source: SourceParams) -> None:
    folders = {"dataset.source.images": source.images, "dataset.source.masks": source.masks}
    problems = [
        Problem("params.yaml", f"{key} is '{folder}'", "a folder below the raw data")
        for key, folder in folders.items()
        if PurePosixPath(folder).is_absolute() or ".." in PurePosixPath(folder).parts
    ]
    if problems:
        raise UserError(problems)


def _files(source: SourceParams, raw: RawFiles) -> tuple[Files, Files, list[Problem]]:
    """Images and masks by id; other files are problems."""
    images: Files = defaultdict(list)
    masks: Files = defaultdict(list)
    problems: list[Problem] = []
    kinds = [
        (source.masks, re.compile(source.mask_names), masks),
        (source.images, re.compile(source.image_names), images),
    ]
    for found in raw.below(source.images, source.masks):
        if isinstance(found, Problem):
            problems.append(found)
        elif PurePosixPath(found.name).suffix.lower() not in SUFFIXES:
            problems.append(Problem(found.path, "is no image by its suffix", " ".join(SUFFIXES), "Move it elsewhere."))
        elif not any(_take(found, *kind) for kind in kinds):
            expected = "a name as dataset.source.image_names or mask_names wants it"
            problems.append(Problem(found.path, "is neither an image nor a mask by its name", expected))
    return images, masks, problems


def _take(found: RawFile, folder: str, names: re.Pattern[str], files: Files) -> bool:
    path = PurePosixPath(found.name)
    match = names.fullmatch(str(path.relative_to(folder))) if path.is_relative_to(folder) else None
    if match and match.group(1):
        files[match.group(1)].append(found.path)
    return bool(match and match.group(1))


def _nothing(root: Path, kind: str, folder: str, names: str) -> Problem:
    key = f"dataset.source.{kind}"
    if not (root / folder).is_dir():
        fix = f"Make it and put the {kind}s there, or change {key}s in params.yaml."
        expected = f"the folder that {key}s names, here or in a .zip or .tar"
        return Problem(str(root / folder), "is missing", expected, fix)
    fix = f"Put the {kind}s there, or change {key}s or {kind}_names in params.yaml."
    expected = f"names that match {names} and end in {' '.join(SUFFIXES)}"
    return Problem(str(root / folder), f"holds no {kind}", expected, fix)


def _no_pair(folder: str, images: Files, masks: Files) -> Problem:
    image, mask = min(images.values())[0], min(masks.values())[0]
    return Problem(
        folder,
        f"none of {len(masks):,} masks has the id of an image, such as {mask} beside {image}",
        "the same id by the first parenthesis of image_names and of mask_names",
        "Rename the masks, or change dataset.source.image_names or mask_names in params.yaml.",
    )


def _listed(path: Path, images: Files) -> dict[str, Listed]:
    """splits.csv, if there is one."""
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(Problem(str(path), "is not UTF-8 text")) from None
    rows = csv.DictReader(text.splitlines())
    columns = rows.fieldnames or []
    if missing := [name for name in ("id", "split") if name not in columns]:
        found = f"has no column {' and no column '.join(missing)}; its first line names: {', '.join(columns)}"
        raise UserError(Problem(str(path), found, "id,split or id,split,group"))
    listed: dict[str, Listed] = {}
    problems = []
    example = min(images)
    for row in rows:
        where, name, split = f"{path} line {rows.line_num}", (row["id"] or "").strip(), (row["split"] or "").strip()
        if name not in images:
            fix = f"An id is a path below the images folder without suffix, such as {example}."
            problems.append(Problem(where, f"id '{name}' has no image", "the id of an image", fix))
        elif name in listed:
            problems.append(Problem(where, f"id '{name}' stands a second time", "each id once"))
        known = [known for known in SPLITS if known == split]
        if not known:
            problems.append(Problem(where, f"split '{split}'", "one of " + ", ".join(SPLITS)))
        else:
            listed[name] = Listed(known[0], (row.get("group") or "").strip())
    if problems:
        raise UserError(shortened(problems))
    return listed
