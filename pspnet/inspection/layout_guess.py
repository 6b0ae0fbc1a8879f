"""A guess about the layout of a folder, and helper functions that the recognizers share."""

from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any, NamedTuple


class LayoutGuess(NamedTuple):
    layout: str
    reason: str
    source: dict[str, Any]  # known fields of dataset.source
    obstacle: str = ""  # why the folder cannot be read with this layout yet
    note: str = ""  # what the user should know about this guess
    certain: bool = True  # if False, other readings are shown too
    unlikely: bool = False  # if True, other readings are listed before this one


def parent_of(path: str) -> str:
    return str(PurePosixPath(path).parent)


def common(folders: Iterable[str]) -> str:
    """The deepest folder that contains all of these folders."""
    several = [PurePosixPath(folder).parts for folder in folders]
    same = []
    for level in zip(*several, strict=False):
        if len({*level}) > 1:
            break
        same.append(level[0])
    return str(PurePosixPath(*same))
