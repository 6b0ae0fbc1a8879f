"""The raw data as it would look with a batch added: all files, and their paths after the addition."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from pspnet.config.dataset import DatasetParams, FolderParams
from pspnet.errors import Problem
from pspnet.raw.files import RawFile, RawFiles, Stamp
from pspnet.raw.sample import RawSample

AS_IT_IS = "."

# Maps a path in the batch to its path under the raw data folder, or to None if `prepare` would not find the file there.
# Worker processes get a copy of this function, so it must be a module-level function.
Place = Callable[[PurePosixPath], PurePosixPath | None]


def place_of_folder(dataset: DatasetParams, name: str) -> Place:
    """Where a batch's files go. With the layout `folder`, a batch becomes one folder of images and one of masks."""
    source = dataset.source
    if name == AS_IT_IS or not isinstance(source, FolderParams):
        return _as_it_is
    roots = sorted({PurePosixPath(source.images), PurePosixPath(source.masks)}, key=lambda root: -len(root.parts))
    return partial(_in_folders, tuple(roots), name)


def place_of_archive(archive: str, to: PurePosixPath) -> Place:
    return partial(_in_archive, archive, to)


def _as_it_is(path: PurePosixPath) -> PurePosixPath:
    return path


def _in_folders(roots: tuple[PurePosixPath, ...], name: str, path: PurePosixPath) -> PurePosixPath | None:
    root = next((root for root in roots if path.is_relative_to(root)), None)
    return root / name / path.relative_to(root) if root else None


def _in_archive(archive: str, to: PurePosixPath, path: PurePosixPath) -> PurePosixPath:
    return to / path.relative_to(archive) if path.is_relative_to(archive) else path


class OneArchive(RawFiles):
    """The files of a batch that is a single archive."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.parent)
        self._path = PurePosixPath(path.name)

    def below(self, *folders: str) -> Iterator[RawFile | Problem]:
        yield from self._found(self._path, [PurePosixPath(folder) for folder in folders])


class Together(RawFiles):
    """The files of the raw data and of the batch. `below` lists the files; the other methods use that list."""

    def __init__(self, raw: Path, batch: RawFiles, place: Place) -> None:
        super().__init__(raw)
        self.of_batch: dict[str, str] = {}  # path under the raw data folder -> path in the batch
        self.batch = batch
        self._place = place

    def below(self, *folders: str) -> Iterator[RawFile | Problem]:
        if self.root.is_dir():
            yield from super().below(*folders)
        for found in self.batch.below(AS_IT_IS):
            if isinstance(found, Problem):
                self.of_batch[found.where] = found.where
                yield found
                continue
            name, path = self._place(PurePosixPath(found.name)), self._place(PurePosixPath(found.path))
            if name and path and any(name.is_relative_to(folder) for folder in folders):
                self.of_batch[str(path)] = found.path
                yield RawFile(str(name), str(path))

    def read(self, path: str, max_bytes: int) -> bytes:
        if path in self.of_batch:
            return self.batch.read(self.of_batch[path], max_bytes)
        return super().read(path, max_bytes)

    def stamp(self, path: str) -> Stamp:
        return self.batch.stamp(self.of_batch[path]) if path in self.of_batch else super().stamp(path)

    def size(self, path: str) -> int:
        return self.batch.size(self.of_batch[path]) if path in self.of_batch else super().size(path)

    def brings_mask(self, sample: RawSample) -> bool:
        files = (sample.mask.path, *sample.mask.paths) if sample.mask else ()  # a drawn mask has no paths
        return any(path in self.of_batch for path in files)

    def shown(self, path: str) -> str:
        """The path where the file is now, for messages."""
        return str(self.batch.root / self.of_batch[path] if path in self.of_batch else self.root / path)
