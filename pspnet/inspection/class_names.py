"""Finds class names in files next to the data."""

import csv
import re
from collections.abc import Collection
from pathlib import PurePosixPath

from pspnet.inspection.listing import Listing
from pspnet.raw.masks import COLOR

LISTS = ("labels.txt", "label.txt", "classes.txt", "class_names.txt", "names.txt", "classes.names", "obj.names")
NO_CLASS = "__ignore__"  # labelme lists this before the first class
MOST_TABLES = 20


def names_beside(listing: Listing, values: Collection[int]) -> tuple[dict[int, str], str]:
    """Return the name of each value, and the file that gives them. Only files that name every value are used."""
    wanted = {*values} - {255}
    for file in listing.ending(".txt", ".names", ".csv")[: MOST_TABLES * 10]:
        table = file.name.lower().endswith(".csv")
        if not table and PurePosixPath(file.name).name.lower() not in LISTS:
            continue
        text = listing.text(file)
        named = _names_in_table(text) if table else _names_in_lines(text)
        if wanted and wanted <= named.keys() and len({*named.values()}) == len(named):
            return named, file.name
    return {}, ""


def _names_in_lines(text: str) -> dict[int, str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = lines[1:] if lines[:1] == [NO_CLASS] else lines
    numbered = [re.fullmatch(r"(\d{1,5})\s*[:,;\s]\s*(\S.*)", line) for line in lines]
    if lines and all(numbered):
        return {int(match[1]): match[2].strip() for match in numbered if match}
    return {value: line.strip("_ ") or str(value) for value, line in enumerate(lines)}


def _names_in_table(text: str) -> dict[int, str]:
    """Color value -> name, read from a table with the columns name, r, g, b."""
    rows = csv.DictReader(text.splitlines(), skipinitialspace=True)
    columns = {(column or "").strip().lower(): column for column in rows.fieldnames or []}
    if not {"name", "r", "g", "b"} <= columns.keys():
        return {}
    named = {}
    for row in rows:
        parts = [(row[columns[part]] or "").strip() for part in ("r", "g", "b")]
        if not all(part.isdecimal() and int(part) < 256 for part in parts):
            return {}
        red, green, blue = map(int, parts)
        named[COLOR | red << 16 | green << 8 | blue] = (row[columns["name"]] or "").strip()
    return named
