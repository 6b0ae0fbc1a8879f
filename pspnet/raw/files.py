"""The files below data/raw. A .zip or .tar is treated as if it were unpacked in its folder."""

import os
import re
import stat
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

from pspnet.errors import Problem
from pspnet.printable import UNPRINTABLE
from pspnet.raw.images import Refused

ARCHIVES = (".zip", ".tar")
# These are single streams: every access to a file unpacks everything before it.
STREAMS = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz|7z|rar|gz|bz2|xz|zst)$", re.IGNORECASE)
SYSTEM_FILES = ("thumbs.db", "desktop.ini", "__macosx")  # names that start with a dot are hidden too
MOST_MEMBERS = 200_000  # members in an archive; listing them takes about ten seconds and 300 MB
LISTED_BYTES = 128  # bytes per member in the listing of a .zip, unless names are unusually long
MOST_OPEN = 4  # archives kept open; ids are read in order, so archives are too
PACK_AGAIN = "Pack the archive again."


class TooManyBytes(Refused):
    def __init__(self, size: int) -> None:
        found = f"is {size / 1e6:,.0f} MB, more than an image of prepare.max_megapixels can take"
        super().__init__(found, "one image", "Cut it into tiles or raise prepare.max_megapixels.", "too_large")
        self.size = size


class RawFile(NamedTuple):
    name: str  # path relative to the raw folder, as if its archive were unpacked
    path: str  # the actual path, where an archive appears as a folder


class Stamp(NamedTuple):
    """A file with the same stamp is unchanged. Stamps are never compared with a clock, which can be turned back."""

    size: int
    mtime_ns: int
    ctime_ns: int  # no program can set this time


class RawFiles:
    """The files below a folder. It is small when pickled, because each process opens the archives it reads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._archives: set[str] = set()
        self._open: OrderedDict[str, _Archive] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def below(self, *folders: str) -> Iterator[RawFile | Problem]:
        """Yield every file in these folders, in no particular order, and a Problem for each unusable file. System files
        are skipped.
        """
        wanted = [PurePosixPath(folder) for folder in folders]
        unreadable: list[Problem] = []

        def tell(error: OSError) -> None:
            path = Path(error.filename).relative_to(self.root).as_posix()
            found = f"cannot be read ({error.strerror})"
            unreadable.append(Problem(path, found, "a readable folder", kind="unreadable"))

        for parent, folders_here, names in os.walk(self.root, onerror=tell):
            here = PurePosixPath(Path(parent).relative_to(self.root))
            visible = sorted(name for name in folders_here if not is_hidden(name))
            folders_here[:] = [name for name in visible if _is_on_the_way(here / name, wanted)]
            for name in folders_here:
                if Path(parent, name).is_symlink():
                    fix = "Put the folder itself there."
                    yield Problem(str(here / name), "is a link to a folder", "a folder or files", fix, "unreadable")
            inside, prefix = _is_below(here, wanted), "" if str(here) == "." else f"{here}/"
            for name in sorted(names):
                if is_hidden(name):
                    continue
                if inside and not (name.lower().endswith(ARCHIVES) or STREAMS.search(name) or UNPRINTABLE.search(name)):
                    yield RawFile(prefix + name, prefix + name)  # the fast path, taken for nearly every file
                else:
                    yield from self._found(here / name, wanted)
        yield from unreadable

    def _found(self, path: PurePosixPath, wanted: list[PurePosixPath]) -> Iterator[RawFile | Problem]:
        if path.suffix.lower() in ARCHIVES:
            self._archives.add(str(path))
            yield from self._members(path, wanted)
        elif STREAMS.search(path.name):
            found = "is an archive that can only be read from the start"
            fix = "Unpack it, or pack it as .zip or plain .tar."
            yield Problem(str(path), found, "files, .zip or .tar", fix, "unreadable")
        elif _is_below(path, wanted):
            yield _nameless(str(path)) if UNPRINTABLE.search(str(path)) else RawFile(str(path), str(path))

    def _members(self, archive: PurePosixPath, wanted: list[PurePosixPath]) -> Iterator[RawFile | Problem]:
        try:
            members = self._opened(str(archive)).members
        except Refused as refused:
            yield refused.problem_at(str(archive))
            return
        for name, member in members.items():
            unpacked, path = archive.parent / name, f"{archive}/{name}"
            left_behind = any(is_hidden(part) for part in PurePosixPath(name).parts if part != "..")
            if left_behind or not _is_below(unpacked, wanted):
                continue
            if isinstance(member, Refused):
                yield member.problem_at(path)
            else:
                yield _nameless(path) if UNPRINTABLE.search(path) else RawFile(str(unpacked), path)

    def read(self, path: str, max_bytes: int) -> bytes:
        """Return the bytes of the file at a RawFile's path. A larger file is rejected before it is read."""
        if archive := self._archive_of(path):
            return self._opened(archive).read(path.removeprefix(f"{archive}/"), max_bytes)
        return read_file(f"{self.root}/{path}", max_bytes)

    def _archive_of(self, path: str) -> str | None:
        if not self._archives:
            return None
        return next((archive for archive in map(str, PurePosixPath(path).parents) if archive in self._archives), None)

    def stamp(self, path: str) -> Stamp:
        """Return the stamp of the file, or of the archive that contains it."""
        try:
            status = (self.root / (self._archive_of(path) or path)).stat()
        except OSError:  # a broken link; reading it reports the problem
            return Stamp(0, 0, 0)
        return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def size(self, path: str) -> int:
        """Return the size of the file in bytes, or 0 if it cannot be read."""
        if archive := self._archive_of(path):
            return self._opened(archive).size(path.removeprefix(f"{archive}/"))
        return self.stamp(path).size

    def _opened(self, path: str) -> "_Archive":
        if path not in self._open:
            if len(self._open) >= MOST_OPEN:
                self._open.popitem(last=False)
            kind = _Zip if path.lower().endswith(".zip") else _Tar
            self._open[path] = kind(self.root / path)
        self._open.move_to_end(path)
        return self._open[path]


def read_file(path: str | Path, max_bytes: int) -> bytes:
    """Return the bytes of a file, read with system calls: Python's file objects take twice as long for small images."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe must not wait for its writer
        try:
            status = os.fstat(file)
            if stat.S_ISREG(status.st_mode):
                _check_size(status.st_size, max_bytes)
                return b"".join(iter(lambda: os.read(file, status.st_size + 1), b""))
        finally:
            os.close(file)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise Refused(f"cannot be read ({error.strerror})", "a readable file") from None
    raise Refused("is a broken link or not a regular file", "a file")


class _Archive(Protocol):
    members: dict[str, Any]  # name -> position of the file in the archive, or a Refused that says why it cannot be read

    def read(self, name: str, max_bytes: int) -> bytes: ...

    def size(self, name: str) -> int: ...


class _Zip:
    def __init__(self, path: Path) -> None:
        try:
            _check_listing(path)
            self._file = zipfile.ZipFile(path)
        except Refused:
            raise
        except Exception as error:  # a broken file can raise anything
            raise _broken(error) from None
        if len(self._file.infolist()) > MOST_MEMBERS:
            raise _too_many()
        self.members: dict[str, zipfile.ZipInfo | Refused] = {}
        for info in self._file.infolist():
            name, found = _safe(info.filename)
            if info.filename.endswith("/"):  # is_dir() fails on an empty name
                continue
            if info.flag_bits & 1:
                found = Refused("is encrypted", "a file that can be read", "Pack it without a password.")
            _keep(self.members, name, found or info)

    def read(self, name: str, max_bytes: int) -> bytes:
        info = self.members[name]
        assert isinstance(info, zipfile.ZipInfo)
        _check_size(info.file_size, max_bytes)
        try:
            with self._file.open(info) as member:
                return member.read(info.file_size)  # never more than the stated size
        except Exception as error:  # a broken file can raise anything
            raise Refused(f"cannot be read from its archive ({error})", "a complete archive", PACK_AGAIN) from None

    def size(self, name: str) -> int:
        info = self.members[name]
        return info.file_size if isinstance(info, zipfile.ZipInfo) else 0


class _Tar:
    def __init__(self, path: Path) -> None:
        self.members: dict[str, tuple[int, int] | Refused] = {}  # the offset and size of its bytes
        try:
            with tarfile.open(path, "r:") as file:
                for count, info in enumerate(file, start=1):
                    if count > MOST_MEMBERS:
                        raise _too_many()
                    file.members = []  # type: ignore[attr-defined]  # otherwise `file` keeps a kilobyte for each member
                    name, found = _safe(info.name)
                    if info.isdir():
                        continue
                    if not info.isreg() or info.issparse():
                        found = Refused("is a link or not a regular file", "a file", PACK_AGAIN)
                    _keep(self.members, name, found or (info.offset_data, info.size))
        except Refused:
            raise
        except Exception as error:  # a broken file can raise anything
            raise _broken(error) from None
        self._path = path

    def read(self, name: str, max_bytes: int) -> bytes:
        member = self.members[name]
        assert isinstance(member, tuple)
        offset, size = member
        _check_size(size, max_bytes)
        with self._path.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) < size:
            raise Refused("is cut off at the end of its archive", "a complete archive", PACK_AGAIN)
        return data

    def size(self, name: str) -> int:
        member = self.members[name]
        return member[1] if isinstance(member, tuple) else 0


def _keep(members: dict[str, Any], name: str, found: Any) -> None:
    """Add a member. If the archive has two files with the same name, neither can be used."""
    if name in members:
        found = Refused("occurs twice in its archive", "each name once", PACK_AGAIN)
    members[name] = found


def _safe(name: str) -> tuple[str, Refused | None]:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        return str(path), Refused("would be unpacked outside its folder", "a path below its archive", PACK_AGAIN)
    if not path.parts:
        return str(path), Refused("has no name", "a name for each file", PACK_AGAIN)
    return str(path), None


def _check_listing(path: Path) -> None:
    """Reject a .zip with too many members. This reads only the end of the file, before zipfile creates an object for
    each member.
    """
    with path.open("rb") as file:
        end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
    if end and end[zipfile._ECD_SIZE] > MOST_MEMBERS * LISTED_BYTES:  # type: ignore[attr-defined]
        raise _too_many()


def _too_many() -> Refused:
    most = f"at most {MOST_MEMBERS:,}"
    return Refused("contains too many files", most, "Pack them into several archives, or unpack it.")


def _broken(error: Exception) -> Refused:
    return Refused(f"cannot be opened as an archive ({error})", "a complete .zip or .tar", PACK_AGAIN)


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise TooManyBytes(size)


def _is_below(path: PurePosixPath, folders: list[PurePosixPath]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _is_on_the_way(path: PurePosixPath, folders: list[PurePosixPath]) -> bool:
    return _is_below(path, folders) or any(folder.is_relative_to(path) for folder in folders)


def _nameless(path: str) -> Problem:
    return Problem(path, "has control characters or invalid UTF-8 in its name", "text", "Rename it.", "unreadable")


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_FILES
