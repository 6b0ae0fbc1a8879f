"""`pspnet data add --import`: raw data that DVC takes from elsewhere, and takes again when they are updated."""

import shutil
from pathlib import Path

from pspnet import terminal
from pspnet.commands.data_add import dvc
from pspnet.credentials import hidden, in_address
from pspnet.errors import Problem, UserError
from pspnet.process import exclusive


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
        _discard(partial)  # of one that was killed
        _check_free(raw, kept)
        raw.parent.mkdir(parents=True, exist_ok=True)
        try:
            dvc(*words, str(partial))  # file by file, so not where data are looked for
            if not partial.is_dir():
                raise UserError(Problem(source, "is a file", "a folder", "Put a .zip or .tar into a folder, there."))
            if raw.exists():
                raw.rmdir()
            dvc("move", str(partial), str(raw))
        finally:
            _discard(partial)
    terminal.out.print(f"{raw}: imported from {source}. {kept} says so.", markup=False)
    terminal.out.print(f"`dvc update {kept}`, and every `make retrain`, brings what is new there.", markup=False)
    terminal.out.print(f"Next: git add {kept} && git commit, then make retrain", markup=False)


def _refuse_credentials(words: list[str]) -> None:
    """DVC writes the address into the .dvc file, which is committed and goes into every version."""
    for word in words:
        if in_address(word):
            fix = "Keep it in a remote: `dvc remote add`, `dvc remote modify --local`; then import remote://NAME/PATH."
            raise UserError(Problem(hidden(word), "holds a password or a token", "an address without", fix))


def _check_free(raw: Path, kept: Path) -> None:
    """DVC keeps the raw data as one thing, and lets no other lie in it."""
    if not kept.exists() and not raw.is_file() and not (raw.is_dir() and any(raw.iterdir())):
        return
    fix = (
        f"For the import instead: `dvc remove {kept}`, move {raw} away. For both: `dvc import` into another "
        "folder, then `pspnet data add` that; what is new there has to be added again."
    )
    raise UserError(Problem(str(raw), "is there already, and an import is the whole of it", "no raw data", fix))


def _discard(partial: Path) -> None:
    Path(f"{partial}.dvc").unlink(missing_ok=True)
    if partial.is_dir():
        shutil.rmtree(partial)
    partial.unlink(missing_ok=True)
