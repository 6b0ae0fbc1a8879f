"""Checks a batch of raw data before it is added: where its files would go, and what problems `prepare` would find."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from pspnet.checkout.arrivals import list_arrivals
from pspnet.checkout.content import check_content
from pspnet.checkout.together import AS_IT_IS, OneArchive, Place, Together, place_of_archive, place_of_folder
from pspnet.config.dataset import CocoParams, CvatParams, DatasetParams, FolderParams, LabelmeParams, SourceParams
from pspnet.config.prepare import PrepareParams
from pspnet.errors import Problem, UserError
from pspnet.machine.outputs import whole_file
from pspnet.printable import UNPRINTABLE
from pspnet.raw.classes import declared_classes
from pspnet.raw.files import ARCHIVES, RawFiles, is_hidden
from pspnet.raw.grouping import SPLITS_CSV
from pspnet.raw.layouts import LAYOUTS
from pspnet.raw.problems import MOST_SHOWN, NO_FILES, Verdict, counted, helpful, shortened, write_problems
from pspnet.raw.validation import Rules

BATCH = "a folder, .zip or .tar"


@dataclass(frozen=True)
class Batch:
    files: dict[Path, PurePosixPath]  # path in the batch -> path under the raw data folder
    images: int
    masks: int
    groups: int
    duplicates: int  # images that are copies of others; `prepare` keeps one of each


@dataclass(frozen=True)
class Addition:
    """A batch to add, the raw data to add it to, and the params to check it against."""

    batch: Path
    raw: Path
    dataset: DatasetParams
    prepare: PrepareParams
    name: str | None
    state: Path
    tick: Callable[[int, int, str], None]


def check_batch(addition: Addition) -> Batch:
    """Return the batch, or raise one error with all its problems.

    Problems with existing data, or with the dataset as a whole, are left to `prepare`.
    """
    batch, raw, dataset, name = addition.batch, addition.raw, addition.dataset, addition.name
    if not batch.exists():
        raise UserError(Problem(str(batch), "is missing", BATCH))
    if batch.is_file():
        return _check_archive(addition)
    here, there = batch.resolve(), raw.resolve()
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise UserError(Problem(str(batch), f"overlaps {raw}", "a folder elsewhere"))
    place = place_of_folder(
        dataset, _checked_name(here.name if name is None else name, dataset, given=name is not None)
    )
    files, stray, problems = {}, [], []
    for path in _below(batch):
        to = place(PurePosixPath(path.relative_to(batch).as_posix()))
        if to is None:
            fix = f"Remove it, or add the batch with its own folders: --name {AS_IT_IS}"
            stray.append(Problem(str(path), "would not be found by `prepare`", _folders(dataset), fix))
        elif not (target := Path(os.path.realpath(path))).is_relative_to(here):
            found = f"is a link to {target}, outside the batch"
            problems.append(Problem(str(path), found, "files in the batch", "Put the file itself there."))
        elif not path.is_file():
            problems.append(Problem(str(path), "is a broken link or not a regular file", "a file"))
        else:
            files[path] = to
    problems += [problem for path, to in files.items() for problem in _in_the_way(path, raw, to)]
    if problems or (stray and not files):
        raise UserError(shortened([*stray, *problems]))
    return _check(files, RawFiles(batch), place, addition, stray)


def _check_archive(addition: Addition) -> Batch:
    """Do what `check_batch` does, for the files in an archive."""
    batch = addition.batch
    if batch.suffix.lower() not in ARCHIVES:
        raise UserError(Problem(str(batch), "is a file", BATCH))
    stem = _checked_name(batch.stem if addition.name is None else addition.name, addition.dataset, given=False)
    to = PurePosixPath(f"{stem}{batch.suffix}")
    if problems := list(_in_the_way(batch, addition.raw, to)):
        raise UserError(problems)
    return _check({batch: to}, OneArchive(batch), place_of_archive(batch.name, to), addition, [])


def _check(
    files: dict[Path, PurePosixPath], own: RawFiles, place: Place, addition: Addition, stray: list[Problem]
) -> Batch:  # fmt: skip
    dataset, prepare, raw = addition.dataset, addition.prepare, addition.raw

    def home(name: str) -> Path:
        return own.root if PurePosixPath(name) in files.values() else raw

    together, layout = Together(raw, own, place), LAYOUTS[dataset.source.layout]
    classes = declared_classes(dataset, home("classes.yaml"), layout.classes(dataset.source, together))
    arrivals = list_arrivals(together, dataset, prepare, home(SPLITS_CSV))
    rules, pieces = Rules.of(classes, prepare), addition.state / "data-add"
    verdicts = [*arrivals.verdicts, *check_content(arrivals, together, rules, pieces, addition.tick)]
    refused = [one for one in verdicts if one.outcome in ("error", "quarantined")]
    if stray or refused:
        raise _refusal(stray, refused, together, addition.state / "data-add.csv")
    if not arrivals.samples:
        raise UserError(Problem(str(own.root), "adds neither an image nor a mask", _folders(dataset)))
    return Batch(
        files,
        images=sum(sample.image in together.of_batch for sample in arrivals.samples),
        masks=sum(map(together.brings_mask, arrivals.samples)),
        groups=len({sample.group for sample in arrivals.samples}),
        duplicates=sum(one.outcome == "duplicate" for one in verdicts),
    )


def _refusal(stray: Sequence[Problem], refused: Sequence[Verdict], together: Together, listing: Path) -> UserError:
    every = [*stray, *(_as_it_lies(one.problem, together) for one in refused)]
    said = ["Nothing was added."]
    if choices := helpful([Verdict(one.problem, "quarantined", one.mendable) for one in refused]):
        said += ["To add the batch without repairing it, choose in params.yaml:", *(f"  {line}" for line in choices)]
    if len(every) > MOST_SHOWN:
        with whole_file(listing) as partial:
            write_problems(partial, (Verdict(problem, "error") for problem in every))
        said.append(f"{listing} lists {counted(len(every), 'problem')}.")
    return UserError(shortened(every), "\n".join(said))


def _as_it_lies(problem: Problem, together: Together) -> Problem:
    """The problem, with the path where the file is now instead of where it would be added."""
    return problem if problem.kind in NO_FILES else replace(problem, where=together.shown(problem.where))


def _checked_name(name: str, dataset: DatasetParams, given: bool) -> str:
    if not isinstance(dataset.source, FolderParams) and given and name != AS_IT_IS:
        found = f"gives a folder name, but layout {dataset.source.layout} has its own folders"
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
    return f"files in {dataset.source.images} and {mask_folder(dataset.source)}, as set in dataset.source"


def mask_folder(source: SourceParams) -> str:
    """The mask folder, or AS_IT_IS for layouts with annotation files, which have no mask folder."""
    return AS_IT_IS if isinstance(source, CocoParams | LabelmeParams | CvatParams) else source.masks
