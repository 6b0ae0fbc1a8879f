"""A batch of raw data before it is added: where its files would go, and the problems `prepare` would find with them."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from pspnet.config.dataset import CocoParams, CvatParams, DatasetParams, FolderParams, LabelmeParams, SourceParams
from pspnet.config.prepare import ProblemsParams
from pspnet.errors import Problem, UserError
from pspnet.printable import UNPRINTABLE
from pspnet.raw.files import ARCHIVES, RawFile, RawFiles, is_hidden
from pspnet.raw.grouping import grouped
from pspnet.raw.layouts import LAYOUTS
from pspnet.raw.problems import judge, shortened

AS_IT_IS = "."
BATCH = "a folder, .zip or .tar"
Place = Callable[[PurePosixPath], PurePosixPath | None]  # path in the batch -> path below the raw data


@dataclass(frozen=True)
class Batch:
    files: dict[Path, PurePosixPath]  # path in the batch -> path below the raw data
    images: int
    masks: int
    groups: int


def check_batch(
    batch: Path, raw: Path, dataset: DatasetParams, policies: ProblemsParams, name: str | None
) -> Batch:  # fmt: skip
    """The batch, or all its problems at once; problems with existing data are left to `prepare`."""
    if not batch.exists():
        raise UserError(Problem(str(batch), "is missing", BATCH))
    if batch.is_file():
        return _check_archive(batch, raw, dataset, policies, name)
    here, there = batch.resolve(), raw.resolve()
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise UserError(Problem(str(batch), f"overlaps {raw}", "a folder elsewhere"))
    place = _place(dataset, _checked_name(here.name if name is None else name, dataset, given=name is not None))
    files, problems = {}, []
    for path in _below(batch):
        to = place(PurePosixPath(path.relative_to(batch).as_posix()))
        if to is None:
            fix = f"Remove it, or add the batch with its own folders: --name {AS_IT_IS}"
            problems.append(Problem(str(path), "would not be found by `prepare`", _folders(dataset), fix))
        elif not (target := Path(os.path.realpath(path))).is_relative_to(here):
            found = f"is a link to {target}, outside the batch"
            problems.append(Problem(str(path), found, "files in the batch", "Put the file itself there."))
        elif not path.is_file():
            problems.append(Problem(str(path), "is a broken link or not a regular file", "a file"))
        else:
            files[path] = to
    return _check(files, RawFiles(batch), place, raw, dataset, policies, problems)


def _check_archive(
    batch: Path, raw: Path, dataset: DatasetParams, policies: ProblemsParams, name: str | None
) -> Batch:  # fmt: skip
    """`check_batch` for an archive, which counts as the files in it."""
    if batch.suffix.lower() not in ARCHIVES:
        raise UserError(Problem(str(batch), "is a file", BATCH))
    stem = _checked_name(batch.stem if name is None else name, dataset, given=False)
    to = PurePosixPath(f"{stem}{batch.suffix}")

    def place(path: PurePosixPath) -> PurePosixPath:
        return to / path.relative_to(batch.name) if path.is_relative_to(batch.name) else path

    return _check({batch: to}, _OneArchive(batch), place, raw, dataset, policies, [])


def _check(
    files: dict[Path, PurePosixPath], own: RawFiles, place: Place, raw: Path, dataset: DatasetParams,
    policies: ProblemsParams, problems: list[Problem],
) -> Batch:  # fmt: skip
    problems += [problem for path, to in files.items() for problem in _in_the_way(path, raw, to)]
    if problems:
        raise UserError(shortened(problems))
    together = _Together(raw, own, place)
    images, masks, groups = 0, 0, set[str]()
    found = grouped(LAYOUTS[dataset.source.layout].find(dataset.source, together), dataset.group_pattern, raw)
    for item in found:
        if isinstance(item, Problem):
            if item.where in together.of_batch and judge(item, policies).outcome != "allowed":
                problems.append(replace(item, where=str(own.root / together.of_batch[item.where])))
            continue
        own_image = item.image in together.of_batch
        mask_files = (item.mask.path, *item.mask.paths) if item.mask else ()
        own_mask = any(path in together.of_batch for path in mask_files)
        images, masks = images + own_image, masks + own_mask
        if own_image or own_mask:
            groups.add(item.group)
    if problems:
        raise UserError(shortened(problems))
    if not images and not masks:
        raise UserError(Problem(str(own.root), "adds neither an image nor a mask", _folders(dataset)))
    return Batch(files, images, masks, len(groups))


class _OneArchive(RawFiles):
    def __init__(self, path: Path) -> None:
        super().__init__(path.parent)
        self._path = PurePosixPath(path.name)

    def below(self, *folders: str) -> Iterator[RawFile | Problem]:
        yield from self._found(self._path, [PurePosixPath(folder) for folder in folders])


class _Together(RawFiles):
    """The raw data as it would be with the batch added."""

    def __init__(self, raw: Path, batch: RawFiles, place: Place) -> None:
        super().__init__(raw)
        self.of_batch: dict[str, str] = {}  # path below the raw data -> path in the batch
        self._batch, self._place = batch, place

    def below(self, *folders: str) -> Iterator[RawFile | Problem]:
        if self.root.is_dir():
            yield from super().below(*folders)
        for found in self._batch.below(AS_IT_IS):
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
            return self._batch.read(self.of_batch[path], max_bytes)
        return super().read(path, max_bytes)


def _place(dataset: DatasetParams, name: str) -> Place:
    """Where files go: in the layout `folder`, a batch becomes a folder in the images and one in the masks."""
    source = dataset.source
    if name == AS_IT_IS or not isinstance(source, FolderParams):
        return lambda path: path
    roots = sorted({PurePosixPath(source.images), PurePosixPath(source.masks)}, key=lambda root: -len(root.parts))

    def place(path: PurePosixPath) -> PurePosixPath | None:
        for root in roots:
            if path.is_relative_to(root):
                return root / name / path.relative_to(root)
        return None

    return place


def _checked_name(name: str, dataset: DatasetParams, given: bool) -> str:
    if not isinstance(dataset.source, FolderParams) and given and name != AS_IT_IS:
        found = f"names a folder, but layout {dataset.source.layout} has its own folders"
        raise UserError(Problem(f"--name {name}", found, fix="Leave it out."))
    path = PurePosixPath(name)
    hidden = any(map(is_hidden, path.parts)) and name != AS_IT_IS
    if not name or str(path) != name or path.is_absolute() or hidden or UNPRINTABLE.search(name):
        raise UserError(Problem(f"--name {name}", "is not a valid folder name", "a name such as 2024-05"))
    return name


def _below(batch: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(batch):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        yield from (Path(parent, name) for name in sorted(names) if not is_hidden(name))


def _in_the_way(path: Path, raw: Path, to: PurePosixPath) -> Iterator[Problem]:
    if os.path.lexists(raw / to):
        fix = "Rename it, or give the batch another name (--name)."
        yield Problem(str(path), f"would become {raw / to}, which already exists", "an unused name", fix)
    for parent in to.parents:
        if (raw / parent).is_file():
            yield Problem(str(path), f"would go into {raw / parent}, which is a file", "a folder")


def _folders(dataset: DatasetParams) -> str:
    return f"files in {dataset.source.images} and {mask_folder(dataset.source)}, as dataset.source names them"


def mask_folder(source: SourceParams) -> str:
    """The folder of the masks; layouts with annotation files have none."""
    return AS_IT_IS if isinstance(source, CocoParams | LabelmeParams | CvatParams) else source.masks
