"""`pspnet data add`: a batch joins the raw data whole or not at all, and DVC keeps what they are then.

It is copied beside the raw data first. What a kill leaves there is thrown away, or brought to its end by the next one.
"""

import os
import shutil
import subprocess
from pathlib import Path

from pspnet import terminal
from pspnet.commands.data_batch import Batch, look_at, mask_folder
from pspnet.config.params import Params
from pspnet.config.reading import read_yaml
from pspnet.errors import Problem, UserError
from pspnet.outputs import sync, whole_folder
from pspnet.process import exclusive
from pspnet.worktree import dvc_command


def add(batch: Path, raw: Path, params: Params, name: str | None, move: bool, state: Path) -> None:
    _check_raw(raw)
    with exclusive(state / "data-add.lock", str(raw)):
        copied, masks = raw.with_name(f"{raw.name}.adding.partial"), mask_folder(params.dataset.source)
        if copied.exists():
            _join(copied, raw, copied / masks)
            dvc("add", str(raw))
            told = f"{raw}: the batch whose adding was interrupted is there now, and {raw}.dvc says so."
            terminal.out.print(f"{told} If that was not {batch}, add it now.", markup=False)
            return
        found = look_at(batch, raw, params.dataset, params.prepare.problems, name)
        with terminal.progress("add") as tick, whole_folder(copied) as folder:
            for done, (path, to) in enumerate(found.files.items(), start=1):
                _bring(path, folder / to, move)
                tick(done, len(found.files), str(to))
        _join(copied, raw, copied / masks)
        if move:
            _remove(batch, found)
        dvc("add", str(raw))
    parts = f"{found.images:,} images, {found.masks:,} masks added, of {found.groups:,} groups"
    terminal.out.print(f"{raw}: {parts}. {raw}.dvc says so.", markup=False)
    terminal.out.print(f"Next: git add {raw}.dvc && git commit, then make retrain", markup=False)


def _check_raw(raw: Path) -> None:
    dvc("root")
    kept = Path(f"{raw}.dvc")
    if not kept.exists():
        return
    if read_yaml(kept).get("deps"):
        fix = f"Add the batch where they come from, then `dvc update {kept}`."
        raise UserError(Problem(str(raw), "was imported: an update would remove what is added here", fix=fix))
    if not raw.exists():
        fix = f"`dvc pull {kept}` first: else they would no longer be part of the data."
        raise UserError(Problem(str(raw), f"is missing, and {kept} names data", fix=fix))


def _bring(path: Path, to: Path, move: bool) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        if move and not path.is_symlink() and _linked(path, to):
            return
        shutil.copyfile(path, to)
    except OSError as error:
        raise UserError(Problem(str(path), f"cannot be copied to {to} ({error.strerror})")) from None


def _linked(path: Path, to: Path) -> bool:
    """The file itself is not moved before the batch is where it belongs."""
    try:
        os.link(path, to)
    except OSError:  # another disk, or one without links
        return False
    return True


def _join(copied: Path, raw: Path, masks: Path) -> None:
    """By few renames, of masks first: an image whose mask comes later would pass for one without."""
    raw.mkdir(parents=True, exist_ok=True)
    for entry in sorted(copied.iterdir(), key=lambda entry: (not masks.is_relative_to(entry), entry.name)):
        target = raw / entry.name
        if entry.is_dir() and target.is_dir():
            _join(entry, target, masks)
        elif os.path.lexists(target):
            fix = f"Move one of them away, then add again: that finishes what {copied} holds."
            raise UserError(Problem(str(target), f"has come into the way of {entry}", fix=fix))
        else:
            entry.rename(target)
    sync(raw)  # before what was copied is removed
    copied.rmdir()


def _remove(batch: Path, found: Batch) -> None:
    for path in found.files:
        path.unlink()
    if batch.is_dir():
        for folder, _, _ in os.walk(batch, topdown=False):
            if not any(Path(folder).iterdir()):
                Path(folder).rmdir()


def dvc(*words: str) -> None:
    """Its progress and its errors go to the terminal; what it advises to do next does not."""
    done = subprocess.run(dvc_command("--wait-for-lock", *words), stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise UserError(Problem(f"dvc {' '.join(words)}", "has failed", fix="DVC says above why."))
