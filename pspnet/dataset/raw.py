"""The files below data/raw. A .zip or .tar counts as what it holds, unpacked where it lies."""

import os
import re
import stat
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

from pspnet.dataset.images import Refused
from pspnet.errors import Problem
from pspnet.printable import UNPRINTABLE

ARCHIVES = (".zip", ".tar")
# A single stream: to reach one file, all before it would have to be unpacked each time.
STREAMS = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz|7z|rar|gz|bz2|xz|zst)$", re.IGNORECASE)
SYSTEM_FILES = ("thumbs.db", "desktop.ini", "__macosx")  # and whatever begins with a dot
MOST_MEMBERS = 200_000  # of an archive: to list them takes some ten seconds and 300 MB
LISTED_BYTES = 128  # of a member in the list of a .zip, where names are not unusually long
MOST_OPEN = 4  # archives at once: ids are read in order, and so are archives
PACK_AGAIN = "Pack the archive again."


class TooManyBytes(Refused):
    def __init__(self, size: int) -> None:
        found = f"has {size / 1e6:,.0f} MB, more than an image of prepare.max_megapixels can have"
        super().__init__(found, "one image", "Cut it into tiles or raise prepare.max_megapixels.", "too_large")
        self.size = size


class RawFile(NamedTuple):
    name: str  # its path below the raw folder, as if its archive had been unpacked
    path: str  # where it is: an archive stands in it like a folder


class Stamp(NamedTuple):
    """A file with an equal one is as it was. They are not compared with any clock, which may have been set back."""

    size: int
    mtime_ns: int
    ctime_ns: int  # which nothing can set


class RawFiles:
    """Pickled it is small: each process opens the archives it reads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._archives: set[str] = set()
        self._open: OrderedDict[str, _Archive] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def below(self, *folders: str) -> Iterator[RawFile | Problem]:
        """Every file in these folders but those that systems leave behind, and why others are none, in no order."""
        wanted = [PurePosixPath(folder) for folder in folders]
        unreadable: list[Problem] = []

        def tell(error: OSError) -> None:
            path = Path(error.filename).relative_to(self.root).as_posix()
            found = f"cannot be read ({error.strerror})"
            unreadable.append(Problem(path, found, "a folder we may read", kind="unreadable"))

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
                    yield RawFile(prefix + name, prefix + name)  # at once: nearly every file is one of these
                else:
                    yield from self._found(here / name, wanted)
        yield from unreadable

    def _found(self, path: PurePosixPath, wanted: list[PurePosixPath]) -> Iterator[RawFile | Problem]:
        if path.suffix.lower() in ARCHIVES:
            self._archives.add(str(path))
            yield from self._members(path, wanted)
        elif STREAMS.search(path.name):
            found = "is an archive that can only be read from its beginning"
            fix = "Unpack it, or pack it as .zip or plain .tar."
            yield Problem(str(path), found, "files, .zip or .tar", fix, "unreadable")
        elif _is_below(path, wanted):
            yield _nameless(str(path)) if UNPRINTABLE.search(str(path)) else RawFile(str(path), str(path))

    def _members(self, archive: PurePosixPath, wanted: list[PurePosixPath]) -> Iterator[RawFile | Problem]:
        try:
            members = self._opened(str(archive)).members
        except Refused as refused:
            yield Problem(str(archive), refused.found, refused.expected, refused.fix, refused.kind)
            return
        for name, member in members.items():
            unpacked, path = archive.parent / name, f"{archive}/{name}"
            left_behind = any(is_hidden(part) for part in PurePosixPath(name).parts if part != "..")
            if left_behind or not _is_below(unpacked, wanted):
                continue
            if isinstance(member, Refused):
                yield Problem(path, member.found, member.expected, member.fix, member.kind)
            else:
                yield _nameless(path) if UNPRINTABLE.search(path) else RawFile(str(unpacked), path)

    def read(self, path: str, max_bytes: int) -> bytes:
        """Of a RawFile; one that is larger is refused before it is read."""
        if archive := self._archive_of(path):
            return self._opened(archive).read(path.removeprefix(f"{archive}/"), max_bytes)
        return read_file(f"{self.root}/{path}", max_bytes)

    def _archive_of(self, path: str) -> str | None:
        if not self._archives:
            return None
        return next((archive for archive in map(str, PurePosixPath(path).parents) if archive in self._archives), None)

    def stamp(self, path: str) -> Stamp:
        """Of the file, or of the archive it is in."""
        try:
            status = (self.root / (self._archive_of(path) or path)).stat()
        except OSError:  # a broken link; whoever reads it says so
            return Stamp(0, 0, 0)
        return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def _opened(self, path: str) -> "_Archive":
        if path not in self._open:
            if len(self._open) >= MOST_OPEN:
                self._open.popitem(last=False)
            kind = _Zip if path.lower().endswith(".zip") else _Tar
            self._open[path] = kind(self.root / path)
        self._open.move_to_end(path)
        return self._open[path]


def read_file(path: str | Path, max_bytes: int) -> bytes:
    """By the system's own calls: Python's files take as long again, and for small images that counts."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe must not wait for its writer
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
        raise Refused(f"cannot be read ({error.strerror})", "a file we can read") from None
    raise Refused("is a broken link or another thing that is no file", "a file")


class _Archive(Protocol):
    members: dict[str, Any]  # name -> how it is found again, or why it cannot be read

    def read(self, name: str, max_bytes: int) -> bytes: ...


class _Zip:
    def __init__(self, path: Path) -> None:
        try:
            _check_listing(path)
            self._file = zipfile.ZipFile(path)
        except Refused:
            raise
        except Exception as error:  # of a broken file anything is raised
            raise _broken(error) from None
        if len(self._file.infolist()) > MOST_MEMBERS:
            raise _too_many()
        self.members: dict[str, zipfile.ZipInfo | Refused] = {}
        for info in self._file.infolist():
            name, found = _safe(info.filename)
            if info.filename.endswith("/"):  # is_dir() fails where there is no name
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
                return member.read(info.file_size)  # never more than it says to hold
        except Exception as error:  # of a broken file anything is raised
            raise Refused(f"cannot be read from its archive ({error})", "a complete archive", PACK_AGAIN) from None


class _Tar:
    def __init__(self, path: Path) -> None:
        self.members: dict[str, tuple[int, int] | Refused] = {}  # where its bytes begin, and how many
        try:
            with tarfile.open(path, "r:") as file:
                for count, info in enumerate(file, start=1):
                    if count > MOST_MEMBERS:
                        raise _too_many()
                    file.members = []  # type: ignore[attr-defined]  # or it would keep a kilobyte for each
                    name, found = _safe(info.name)
                    if info.isdir():
                        continue
                    if not info.isreg() or info.issparse():
                        found = Refused("is a link or another thing that is no file", "a file", PACK_AGAIN)
                    _keep(self.members, name, found or (info.offset_data, info.size))
        except Refused:
            raise
        except Exception as error:  # of a broken file anything is raised
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
            raise Refused("is cut off with its archive", "a complete archive", PACK_AGAIN)
        return data


def _keep(members: dict[str, Any], name: str, found: Any) -> None:
    """Of two files of one name, which archives can hold, neither."""
    if name in members:
        found = Refused("stands twice in its archive", "each name once", PACK_AGAIN)
    members[name] = found


def _safe(name: str) -> tuple[str, Refused | None]:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        return str(path), Refused("would leave the folder it is unpacked in", "a path below its archive", PACK_AGAIN)
    if not path.parts:
        return str(path), Refused("has no name", "a name for each file", PACK_AGAIN)
    return str(path), None


def _check_listing(path: Path) -> None:
    """Before zipfile makes an object for each of them, by its own reading of the archive's end."""
    with path.open("rb") as file:
        end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
    if end and end[zipfile._ECD_SIZE] > MOST_MEMBERS * LISTED_BYTES:  # type: ignore[attr-defined]
        raise _too_many()


def _too_many() -> Refused:
    most = f"at most {MOST_MEMBERS:,}"
    return Refused("holds too many files to be listed", most, "Pack them into several archives, or unpack it.")


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
    return Problem(path, "has control characters or no UTF-8 in its name", "text", "Rename it.", "unreadable")


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_FILES
