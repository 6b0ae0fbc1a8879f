"""Compares, creates and copies folders for tests."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import filelock


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file under the folder, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """Fill the folder with `make`, unless another pytest process has already done so. Returns the folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{folder}.lock"):
        whole = Path(f"{folder}.whole")
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)  # remove what a failed attempt has left
            folder.mkdir()
            make(folder)
            whole.touch()
    return folder


def linked(source: str, target: str) -> str:
    """A `copy_function` for `shutil.copytree` that creates hard links, for files that are never modified in place."""
    os.link(source, target)
    return target
