"""Outputs appear whole or not at all: they are written next to the final path under a temporary name, then renamed.

They are synced to disk before the rename, so a power cut leaves either the old output or the new one.
"""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from pspnet.errors import Problem, PspnetError, UserError

PARTIAL = ".partial"
LONGEST_NAME = 255  # bytes
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
SYNCED_AT_ONCE = 16  # forty times as fast as one at a time, because the disk handles many syncs together


def partial_of(out: Path) -> Path:
    """Return the temporary path of an output. A digest is used if the name would be too long."""
    name = f"{out.name}{PARTIAL}"
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = f"{hashlib.sha256(os.fsencode(out.name)).hexdigest()}{PARTIAL}"
    return out.with_name(name)


@contextmanager
def whole_folder(out: Path, needed_bytes: int = 0) -> Iterator[Path]:
    """Yield an empty folder to fill, which becomes `out` if the block succeeds. Leftovers of a killed run are removed.

    `needed_bytes` is the space that the output needs, for the message if there is too little space.
    """
    partial = partial_of(out)
    _remove(partial)
    try:
        with _full_disk_reported(out, needed_bytes):
            partial.mkdir(parents=True)
            yield partial
            _sync_all(partial)
    except BaseException:
        _remove(partial)
        raise
    _remove(out)
    partial.rename(out)
    sync(out.parent)


@contextmanager
def whole_file(out: Path, needed_bytes: int = 0) -> Iterator[Path]:
    """Yield a path to write, which becomes `out` if the block succeeds."""
    partial = partial_of(out)
    try:
        with _full_disk_reported(out, needed_bytes):
            out.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            sync(partial)
    except BaseException:
        _remove(partial)
        raise
    partial.replace(out)


def replace_text(path: Path, text: str, backup: Path) -> None:
    """Replace a user's file, and keep its old content in `backup`."""
    if path.exists():
        with whole_file(backup) as partial:
            partial.write_bytes(path.read_bytes())
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def private_file(path: str, flags: int) -> int:
    """An opener for `open(..., opener=)` that makes files readable only by this user."""
    return os.open(path, flags, 0o600)


def sync(path: Path) -> None:
    """Sync a file's content, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_all(folder: Path) -> None:
    paths = [Path(parent, name) for parent, _, names in os.walk(folder) for name in ("", *names)]
    with ThreadPoolExecutor(SYNCED_AT_ONCE) as pool:
        list(pool.map(sync, (path for path in paths if path.is_file() or path.is_dir())))


@contextmanager
def _full_disk_reported(out: Path, needed_bytes: int) -> Iterator[None]:
    try:
        yield
    except PspnetError:
        raise
    except Exception as error:
        if reason := _full_disk_message(error):
            free = shutil.disk_usage(_existing(out.parent)).free
            found = f"has no room for {out.name} ({reason}; {_size(free)} free)"
            expected = f"about {_size(needed_bytes)} of free space" if needed_bytes else ""
            fix = "Free some space there, then run the same command again."
            raise UserError(Problem(str(out.parent), found, expected, fix)) from error
        raise


def _full_disk_message(error: BaseException) -> str | None:
    """Return the system's message if the disk is full, otherwise None. Rust libraries put the error number only in
    their text.
    """
    found = re.search(r"\(os error (\d+)\)", str(error))
    number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
    return os.strerror(number) if number in FULL else None


def user_error_for(error: BaseException) -> UserError | None:
    """Return a UserError for a system error that the user can fix: a full disk or a folder without write permission."""
    if not isinstance(error, OSError) or error.errno not in (*FULL, *REFUSED):
        return None
    where = str(error.filename or Path.cwd())
    if error.errno in FULL:
        found, fix = "has no room", "Free some space there, then run the same command again."
    elif error.errno == errno.EROFS:
        found, fix = "cannot be written", "Work in a checkout on a disk that is not mounted read-only."
    else:
        found, fix = "cannot be used by this user", "Work in your own checkout, or have its owner give access."
    return UserError(Problem(where, f"{found} ({os.strerror(error.errno)})", fix=fix))


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _size(count: int) -> str:
    unit, name = next((pair for pair in ((1e9, "GB"), (1e6, "MB")) if count >= pair[0]), (1e3, "kB"))
    return f"{count / unit:,.1f} {name}"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
