"""Outputs appear whole or not at all: written under another name beside the final one, then renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes `out` when the block ends well. What a killed run left is removed."""
    partial = out.with_name(out.name + ".partial")
    _remove(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        _remove(partial)
        raise
    _remove(out)
    partial.rename(out)


@contextmanager
def whole_file(out: Path) -> Iterator[Path]:
    """The same for one file, which is on disk before it gets its name."""
    partial = out.with_name(out.name + ".partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
    except BaseException:
        _remove(partial)
        raise
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(out)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
