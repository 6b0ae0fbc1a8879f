"""Finds official splits in files next to the data: lists of names, tables with a column of splits, YAML or JSON."""

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import yaml

from pspnet.dataset.store.splits import Split
from pspnet.inspection.listing import Listing
from pspnet.inspection.pairing import words
from pspnet.raw.files import RawFile
from pspnet.raw.layouts.pairs import OUR_FILES, SPLIT_FOLDERS

MOST_LISTS = 20
MOST_READ = 200
MOST_CHARACTERS = 4 * 2**20
SUFFIXES = (".txt", ".lst", ".csv", ".tsv", ".yaml", ".yml", ".json")

Entries = list[tuple[Split, str]]


class SplitList(NamedTuple):
    file: str
    splits: dict[Split, int]  # split -> number of names that are images
    listed: int  # number of names in the file
    lines: Split | None  # the split of the whole file, if every line is just an id

    @property
    def known(self) -> int:
        return sum(self.splits.values())


def split_lists(listing: Listing, ids: set[str]) -> list[SplitList]:
    """The files that assign images to splits. At least half of the names in such a file must be names of images."""
    by_name = defaultdict(list)
    for name in ids:
        by_name[PurePosixPath(name).name].append(name)
    found: list[SplitList] = []
    nearest = sorted(listing.ending(*SUFFIXES), key=lambda file: (file.name.count("/"), file.name))
    for file in nearest[:MOST_READ]:
        entries = [] if PurePosixPath(file.name).name in OUR_FILES else list(_entries(file, listing))
        known = [(split, name) for split, name in entries if name in ids or _stem(name) in by_name]
        if known and len(known) >= len(entries) / 2 and len(found) < MOST_LISTS:
            splits = Counter(split for split, _ in known)
            plain = file.name.lower().endswith((".txt", ".lst")) and {name for _, name in entries} <= ids
            found.append(SplitList(file.name, dict(splits), len(entries), entries[0][0] if plain else None))
    return found


def _stem(name: str) -> str:
    return PurePosixPath((name.split() or [""])[0]).stem


def _entries(file: RawFile, listing: Listing) -> Iterator[tuple[Split, str]]:
    text = listing.text(file)[:MOST_CHARACTERS]
    suffix = PurePosixPath(file.name).suffix.lower()
    if suffix in (".yaml", ".yml", ".json"):
        yield from _in_mapping(_parsed(text, suffix))
        return
    columns = list(_in_table(text, "\t" if suffix == ".tsv" else ",")) if suffix in (".csv", ".tsv") else []
    if columns:
        yield from columns
        return
    splits = {SPLIT_FOLDERS[word] for word in words(PurePosixPath(file.name).stem) if word in SPLIT_FOLDERS}
    if len(splits) == 1:
        [split] = splits
        lines = (line.strip() for line in text.splitlines())
        yield from ((split, line.split(",")[0] if suffix == ".csv" else line) for line in lines if line)


def _parsed(text: str, suffix: str) -> Any:
    try:
        return json.loads(text) if suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError):
        return None


def _in_mapping(content: Any) -> Iterator[tuple[Split, str]]:
    """The names in lists such as `train: [names]`, at the top level or one level below it."""
    if not isinstance(content, dict):
        return
    for part in (content, *(value for value in content.values() if isinstance(value, dict))):
        for key, names in part.items():
            split = SPLIT_FOLDERS.get(str(key).lower())
            if split and isinstance(names, list):
                yield from ((split, str(name)) for name in names if isinstance(name, str | int))


def _in_table(text: str, delimiter: str) -> Iterable[tuple[Split, str]]:
    """The rows of a table with a column that contains only splits, and a column of names before or after it."""
    try:
        rows = list(csv.DictReader(text.splitlines(), delimiter=delimiter, skipinitialspace=True))
    except csv.Error:
        return []
    for column in rows[0] if rows else ():
        values = [str(row[column] or "").strip().lower() for row in rows]
        if column and len({*values}) > 1 and {*values} <= SPLIT_FOLDERS.keys():
            other = next((name for name in rows[0] if name and name != column), None)
            return [(SPLIT_FOLDERS[value], str(row[other])) for value, row in zip(values, rows, strict=True) if other]
    return []
