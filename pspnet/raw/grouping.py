"""Find the group and the official split of each image in a layout."""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from pspnet.dataset.store.splits import SPLITS, Split
from pspnet.errors import Problem, UserError
from pspnet.raw.layouts.pairs import FoundImage
from pspnet.raw.problems import shortened
from pspnet.raw.sample import RawSample

SPLITS_CSV = "splits.csv"  # in data/raw, with columns id,split[,group]; it overrides the layout


class Assignment(NamedTuple):
    """A line of splits.csv."""

    split: Split
    group: str  # "" means use the group pattern


def grouped(
    found: Iterable[FoundImage | Problem], group_pattern: str | None, raw: Path
) -> Iterator[RawSample | Problem]:
    """Yield found images with their group and official split, and a Problem for each unusable file."""
    listed: dict[str, Assignment] = {}
    if (raw / SPLITS_CSV).is_file():
        found = list(found)
        listed = _listed(raw / SPLITS_CSV, {item.id for item in found if isinstance(item, FoundImage)})
    for item in found:
        if isinstance(item, Problem):
            yield item
            continue
        if item.problem:
            yield item.problem
            continue
        own = listed.get(item.id)
        group = (own and own.group) or _group(item, group_pattern)
        if group:
            yield RawSample(item.id, item.image, item.mask, group, own.split if own else item.split)
        else:
            expected = f"an id in which dataset.group_pattern {group_pattern} finds a group"
            start = " (`^` stands for the start of the id)" if (group_pattern or "").startswith("^") else ""
            fix = f"Change the pattern{start} or rename the file."
            yield Problem(item.image, f"has id '{item.id}', which contains no group", expected, fix, "no_group")


def _group(found: FoundImage, pattern: str | None) -> str | None:
    if pattern is None:
        return found.group or found.id
    match = re.search(pattern, found.id)
    return match and match.group(1)


def _listed(path: Path, ids: set[str]) -> dict[str, Assignment]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(Problem(str(path), "is not UTF-8 text")) from None
    rows = csv.DictReader(io.StringIO(text, newline=""))  # splitlines would also split names at U+2028
    columns = rows.fieldnames or []
    if missing := [name for name in ("id", "split") if name not in columns]:
        found = f"has no column {' and no column '.join(missing)}; its first line has {', '.join(columns)}"
        raise UserError(Problem(str(path), found, "id,split or id,split,group"))
    listed: dict[str, Assignment] = {}
    problems = []
    example = min(ids)
    for row in rows:
        where, name, split = f"{path} line {rows.line_num}", row["id"] or "", (row["split"] or "").strip()
        name = name if name in ids else name.strip()  # a file can be named `a .png`
        if name not in ids:
            fix = f"An id is a path below the images folder without its suffix, such as {example}."
            problems.append(Problem(where, f"id '{name}' has no image", "the id of an image", fix))
        elif name in listed:
            problems.append(Problem(where, f"id '{name}' occurs twice", "each id once"))
        known = [known for known in SPLITS if known == split]
        if not known:
            problems.append(Problem(where, f"split '{split}'", "one of " + ", ".join(SPLITS)))
        else:
            listed[name] = Assignment(known[0], (row.get("group") or "").strip())
    if problems:
        raise UserError(shortened(problems))
    return listed
