"""Compares, makes and copies folders for tests."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import filelock


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file under the folder, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """Fill the folder with `make`, unless another of pytest's processes has done so. Returns the folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{folder}.lock"):
        whole = Path(f"{folder}.whole")
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)  # left by a failed attempt
            folder.mkdir()
            make(folder)
            whole.touch()
    return folder


def linked(source: str, target: str) -> str:
    """A `copy_function` for `shutil.copytree` that makes hard links, for files that are never written in place."""
    os.link(source, target)
    return target
