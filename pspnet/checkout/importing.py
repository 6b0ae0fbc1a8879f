"""`pspnet data add --import`: DVC imports raw data from elsewhere, and can update it from there."""

import shutil
from pathlib import Path

from pspnet.checkout.adding import dvc
from pspnet.errors import Problem, UserError
from pspnet.machine import terminal
from pspnet.machine.credentials import hidden, in_address
from pspnet.machine.process import exclusive


def import_from_repository(repository: str, path: str, rev: str | None, raw: Path, state: Path) -> None:
    at = ["--rev", rev] if rev else []
    _import(["import", repository, path, *at, "--out"], f"{path} of {repository}", raw, state)


def import_from_url(url: str, raw: Path, state: Path) -> None:
    _import(["import-url", url], url, raw, state)


def _import(words: list[str], source: str, raw: Path, state: Path) -> None:
    _refuse_credentials(words)
    dvc("root")
    kept, partial = Path(f"{raw}.dvc"), raw.with_name(f"{raw.name}.importing.partial")
    with exclusive(state / "data-add.lock", str(raw)):
        _discard(partial)  # left behind by an import that was killed
        _check_free(raw, kept)
        raw.parent.mkdir(parents=True, exist_ok=True)
        try:
            dvc(*words, str(partial))  # not directly into the raw folder, because DVC writes file by file
            if not partial.is_dir():
                raise UserError(Problem(source, "is a file", "a folder", "Put a .zip or .tar into a folder there."))
            if raw.exists():
                raw.rmdir()
            dvc("move", str(partial), str(raw))
        finally:
            _discard(partial)
    terminal.out.print(f"{raw}: imported from {source}, as recorded in {kept}.", markup=False)
    terminal.out.print(f"`dvc update {kept}` and every `make retrain` fetch new data from there.", markup=False)
    terminal.out.print(f"Next: git add {kept} && git commit, then make retrain", markup=False)


def _refuse_credentials(words: list[str]) -> None:
    """Reject addresses with credentials: DVC writes the address to the .dvc file, which is committed and archived."""
    for word in words:
        if in_address(word):
            fix = "Keep it in a remote: `dvc remote add`, `dvc remote modify --local`; then import remote://NAME/PATH."
            raise UserError(Problem(hidden(word), "contains a password or a token", "an address without one", fix))


def _check_free(raw: Path, kept: Path) -> None:
    """Raise an error if there is raw data already: DVC tracks the folder as a whole, so nothing can be added to it."""
    if not kept.exists() and not raw.is_file() and not (raw.is_dir() and any(raw.iterdir())):
        return
    fix = (
        f"To replace it: `dvc remove {kept}`, then move {raw} away. To keep both: `dvc import` into another folder, "
        "then `pspnet data add` that folder; new data there must be added again."
    )
    raise UserError(Problem(str(raw), "already exists, and an import replaces all of it", "no raw data", fix))


def _discard(partial: Path) -> None:
    Path(f"{partial}.dvc").unlink(missing_ok=True)
    if partial.is_dir():
        shutil.rmtree(partial)
    partial.unlink(missing_ok=True)
