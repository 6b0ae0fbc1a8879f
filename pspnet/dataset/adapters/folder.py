"""Layout `folder`: images in one folder, masks at the same path in another, splits.csv for official splits.

raw/images/street1/0001.jpg   raw/masks/street1/0001.png   raw/splits.csv: id,split[,group]
"""

import csv
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pspnet.config.dataset import DatasetParams
from pspnet.dataset.problems import located, shortened
from pspnet.dataset.raw import RawFiles
from pspnet.dataset.samples import SPLITS, RawSample, Split
from pspnet.errors import Problem, UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")

Files = dict[str, list[str]]  # id -> paths below raw


class Listed(NamedTuple):
    split: Split
    group: str  # "" leaves it to the group pattern


def find(dataset: DatasetParams, raw: RawFiles) -> Iterator[RawSample | Problem]:
    """Samples in the order of their ids; a problem for each file that cannot be one."""
    _check_folders(dataset)
    problems: list[Problem] = []
    images, masks = _files(raw, (dataset.images, dataset.masks), problems)
    if not images or not masks:
        missing = [] if images else [_nothing(raw.root, "image", dataset.images)]
        missing += [] if masks else [_nothing(raw.root, "mask", dataset.masks)]
        raise UserError(shortened([*missing, *located(problems, raw.root)]))
    if not images.keys() & masks.keys():
        raise UserError(_no_pair(dataset.masks, images, masks))
    listed = _listed(raw.root / "splits.csv", images)
    yield from problems
    for orphan in sorted(masks.keys() - images.keys()):
        for path in masks[orphan]:
            fix = f"Add the image {dataset.images}/{orphan} or remove the mask."
            yield Problem(path, "is a mask without an image", "an image of the same name", fix)
    for name in sorted(images):
        yield from _samples(name, images[name], masks.get(name, []), listed.get(name), dataset.group_pattern)


def _samples(
    name: str, images: list[str], masks: list[str], listed: Listed | None, group_pattern: str
) -> Iterator[RawSample | Problem]:
    if len(images) > 1:
        for path in images:
            others = ", ".join(other for other in images if other != path)
            yield Problem(path, f"has the same name as {others}", "one image of each name", "Rename or remove one.")
        return
    if len(masks) > 1:
        yield Problem(images[0], f"has {len(masks)} masks: {', '.join(masks)}", "one", "Remove all but one.")
        return
    match = re.match(group_pattern, name)
    group = (listed and listed.group) or (match and match.group(1))
    if not group:
        expected = f"a group by dataset.group_pattern {group_pattern}"
        yield Problem(images[0], f"id '{name}' names no group", expected, "Change the pattern or rename the file.")
        return
    yield RawSample(name, images[0], masks[0] if masks else None, group, listed.split if listed else None)


def _check_folders(dataset: DatasetParams) -> None:
    problems = []
    folders = {"dataset.images": dataset.images, "dataset.masks": dataset.masks}
    for key, folder in folders.items():
        if PurePosixPath(folder).is_absolute() or ".." in PurePosixPath(folder).parts:
            problems.append(Problem("params.yaml", f"{key} is '{folder}'", "a folder below the raw data"))
    first, second = (PurePosixPath(folder) for folder in folders.values())
    if first.is_relative_to(second) or second.is_relative_to(first):
        found = f"dataset.images '{first}' and dataset.masks '{second}' lie in each other"
        problems.append(Problem("params.yaml", found, "two folders side by side"))
    if problems:
        raise UserError(problems)


def _files(raw: RawFiles, folders: tuple[str, ...], problems: list[Problem]) -> list[Files]:
    """Of each folder the image files by id; other files become problems."""
    files: list[Files] = [defaultdict(list) for _ in folders]
    for found in raw.below(*folders):
        if isinstance(found, Problem):
            problems.append(found)
            continue
        name = PurePosixPath(found.name)
        if name.suffix.lower() not in SUFFIXES:
            problems.append(Problem(found.path, "is no image by its suffix", " ".join(SUFFIXES), "Move it elsewhere."))
            continue
        for folder, own in zip(folders, files, strict=True):
            if name.is_relative_to(folder):
                own[str(name.relative_to(folder).with_suffix(""))].append(found.path)
    return files


def _nothing(root: Path, kind: str, folder: str) -> Problem:
    key, names = f"dataset.{kind}s", " ".join(SUFFIXES)
    if not (root / folder).is_dir():
        fix = f"Make it and put the {kind}s there, or change {key} in params.yaml."
        return Problem(str(root / folder), "is missing", f"the folder that {key} names, here or in a .zip or .tar", fix)
    fix = f"Put the {kind}s there, or change {key} in params.yaml."
    return Problem(str(root / folder), f"holds no {kind}", f"files ending in {names}, or archives of them", fix)


def _no_pair(folder: str, images: Files, masks: Files) -> Problem:
    image, mask = min(images.values())[0], min(masks.values())[0]
    return Problem(
        folder,
        f"none of {len(masks):,} masks has the name of an image, such as {mask} beside {image}",
        "the same path below both folders, but for the suffix",
        "Rename the masks.",
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
