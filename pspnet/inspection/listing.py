"""The files of a folder, by name and kind."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pspnet.errors import Problem, UserError
from pspnet.raw.files import ARCHIVES, RawFile, RawFiles
from pspnet.raw.images import Refused
from pspnet.raw.layouts.pairs import SUFFIXES

LARGEST_TEXT = 64 * 2**20
HEAD = 2**17  # bytes to read from each end of a text that is larger


@dataclass(frozen=True)
class Listing:
    raw: RawFiles
    images: tuple[RawFile, ...]  # all files with an image suffix, including masks; sorted by name
    others: tuple[RawFile, ...]
    problems: tuple[Problem, ...]

    def folders(self) -> Counter[tuple[str, str]]:
        """(folder, suffix) -> number of files."""
        paths = (PurePosixPath(file.name) for file in (*self.images, *self.others))
        return Counter((str(path.parent), path.suffix.lower()) for path in paths)

    def archives(self) -> list[str]:
        """The archives in which some of the files are."""
        inside = (file.path for file in (*self.images, *self.others) if file.name != file.path)
        parents = (str(parent) for path in dict.fromkeys(inside) for parent in PurePosixPath(path).parents)
        return sorted({parent for parent in parents if parent.lower().endswith(ARCHIVES)})

    def ending(self, *suffixes: str) -> list[RawFile]:
        return [file for file in self.others if file.name.lower().endswith(suffixes)]

    def text(self, file: RawFile) -> str:
        """The text of the file, or as much of the text as can be read."""
        return self._bytes(file).decode("utf-8-sig", errors="replace")

    def ends(self, file: RawFile) -> str:
        """The beginning and end of a text file."""
        data = self._bytes(file)
        return (data[:HEAD] + data[HEAD:][-HEAD:]).decode("utf-8-sig", errors="replace")

    def _bytes(self, file: RawFile) -> bytes:
        path = self.raw.root / file.path
        try:
            if file.name == file.path and path.is_file() and path.stat().st_size > LARGEST_TEXT:
                with path.open("rb") as stream:
                    head = stream.read(HEAD)
                    stream.seek(-HEAD, 2)
                    return head + stream.read(HEAD)
            return self.raw.read(file.path, LARGEST_TEXT)
        except (Refused, OSError):
            return b""


def list_files(folder: Path) -> Listing:
    _check(folder)
    raw = RawFiles(folder)
    files, problems = [], []
    for found in raw.below("."):
        if isinstance(found, Problem):
            problems.append(found)
        else:
            files.append(found)
    files.sort()
    images = tuple(file for file in files if file.name.lower().endswith(SUFFIXES))
    others = tuple(file for file in files if not file.name.lower().endswith(SUFFIXES))
    return Listing(raw, images, others, tuple(problems))


def _check(folder: Path) -> None:
    if not folder.exists():
        raise UserError(Problem(str(folder), "is missing", "the data folder"))
    if not folder.is_dir():
        fix = f"Use its folder: {folder.parent}"
        raise UserError(Problem(str(folder), "is a file", "the data folder", fix))
    try:
        next(folder.iterdir(), None)
    except OSError as error:
        raise UserError(Problem(str(folder), f"cannot be read ({error.strerror})", "a readable folder")) from None
