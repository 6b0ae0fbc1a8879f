"""Folders as tests compare and copy them."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import filelock


def contents(folder: Path) -> dict[str, bytes]:
    """Name -> bytes, of every file below the folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """The folder, filled by `make` unless another of pytest's processes has done so; they wait for each other."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{folder}.lock"):
        whole = Path(f"{folder}.whole")
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of one that failed
            folder.mkdir()
            make(folder)
            whole.touch()
    return folder


def linked(source: str, target: str) -> str:
    """For `copy_function` of `shutil.copytree`: hard links, for files that are never written in place."""
    os.link(source, target)
    return target
