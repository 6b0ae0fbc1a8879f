"""`pspnet data add`: add all of a batch to the raw data or nothing, and let DVC store the result.

The batch is first copied to a folder next to the raw data. If the command is killed, the next call either discards the
copy or finishes adding it.
"""

import os
import shutil
import subprocess
from pathlib import Path

from pspnet.checkout.batch import Addition, Batch, check_batch, mask_folder
from pspnet.config.params import Params
from pspnet.config.reading import read_yaml
from pspnet.errors import Problem, UserError
from pspnet.machine import terminal
from pspnet.machine.outputs import sync, whole_folder
from pspnet.machine.process import exclusive
from pspnet.machine.worktree import dvc_command
from pspnet.raw.problems import counted


def add(batch: Path, raw: Path, params: Params, name: str | None, move: bool, state: Path) -> None:
    _check_raw(raw)
    with exclusive(state / "data-add.lock", str(raw)):
        copied, masks = raw.with_name(f"{raw.name}.adding.partial"), mask_folder(params.dataset.source)
        if copied.exists():
            _join(copied, raw, copied / masks)
            dvc("add", str(raw))
            finished = f"{raw}: finished adding the interrupted batch; {raw}.dvc is updated."
            terminal.out.print(f"{finished} If that was not {batch}, add it now.", markup=False)
            return
        with terminal.progress("check") as tick:
            found = check_batch(Addition(batch, raw, params.dataset, params.prepare, name, state, tick))
        with terminal.progress("add") as tick, whole_folder(copied) as folder:
            for done, (path, to) in enumerate(found.files.items(), start=1):
                _bring(path, folder / to, move)
                tick(done, len(found.files), str(to))
        _join(copied, raw, copied / masks)
        if move:
            _remove(batch, found)
        dvc("add", str(raw))
    images, masks, groups = counted(found.images, "image"), counted(found.masks, "mask"), counted(found.groups, "group")
    terminal.out.print(f"{raw}: added {images} and {masks} from {groups}; {raw}.dvc is updated.", markup=False)
    if found.duplicates:
        note = f"Copies of other images: {found.duplicates:,}; `prepare` keeps one of each."
        terminal.out.print(note, markup=False)
    terminal.out.print(f"Next: git add {raw}.dvc && git commit, then make retrain", markup=False)


def _check_raw(raw: Path) -> None:
    dvc("root")
    kept = Path(f"{raw}.dvc")
    if not kept.exists():
        return
    if read_yaml(kept).get("deps"):
        fix = f"Add the batch at the source of the import, then `dvc update {kept}`."
        raise UserError(Problem(str(raw), "was imported: an update would remove files added here", fix=fix))
    if not raw.exists():
        fix = f"Run `dvc pull {kept}` first: otherwise the batch would replace that data."
        raise UserError(Problem(str(raw), f"is missing, but {kept} lists data", fix=fix))


def _bring(path: Path, to: Path, move: bool) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        if move and not path.is_symlink() and _linked(path, to):
            return
        shutil.copyfile(path, to)
    except OSError as error:
        raise UserError(Problem(str(path), f"cannot be copied to {to} ({error.strerror})")) from None


def _linked(path: Path, to: Path) -> bool:
    """Hard-link the file, if possible. The original is removed only once the whole batch has been added."""
    try:
        os.link(path, to)
    except OSError:  # a different disk, or one that does not support links
        return False
    return True


def _join(copied: Path, raw: Path, masks: Path) -> None:
    """Move the copied batch into the raw data with as few renames as possible.

    Masks are moved first, because an image without its mask would count as unlabeled.
    """
    raw.mkdir(parents=True, exist_ok=True)
    for entry in sorted(copied.iterdir(), key=lambda entry: (not masks.is_relative_to(entry), entry.name)):
        target = raw / entry.name
        if entry.is_dir() and target.is_dir():
            _join(entry, target, masks)
        elif os.path.lexists(target):
            fix = f"Move one of them away, then add again: that finishes adding {copied}."
            raise UserError(Problem(str(target), f"appeared while {entry} was being added there", fix=fix))
        else:
            entry.rename(target)
    sync(raw)  # before the copy is removed
    copied.rmdir()


def _remove(batch: Path, found: Batch) -> None:
    for path in found.files:
        path.unlink()
    if batch.is_dir():
        for folder, _, _ in os.walk(batch, topdown=False):
            if not any(Path(folder).iterdir()):
                Path(folder).rmdir()


def dvc(*words: str) -> None:
    """Run DVC and show its progress and errors on the terminal, but not its advice."""
    done = subprocess.run(dvc_command("--wait-for-lock", *words), stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise UserError(Problem(f"dvc {' '.join(words)}", "failed", fix="See DVC's message above."))
