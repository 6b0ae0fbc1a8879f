"""The code that makes a stage's results, and its digest: a checkpoint or a run of other code is not continued."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

PACKAGE = Path(__file__).parent
_EVERYWHERE = ("code", "config.section", "outputs", "printable", "process")
# Rooms and modules of this package. Messages, terminal and tracking change no result.
CODE: dict[str, tuple[str, ...]] = {
    "prepare": (
        *_EVERYWHERE, "config.dataset", "config.prepare", "config.reading", "dataset", "stages.prepare",
    ),
    "pretrain": (
        *_EVERYWHERE, "config.backbone", "config.pretrain", "config.runtime", "dataset", "model", "selfsup",
        "stages.pretrain", "training",
    ),
    "finetune": (
        *_EVERYWHERE, "config.backbone", "config.finetune", "config.runtime", "dataset", "evaluation", "losses",
        "metrics", "model", "prediction", "protocol", "stages.finetune", "training", "windows",
    ),
    "evaluate": (
        *_EVERYWHERE, "config.evaluate", "config.predict", "config.runtime", "dataset", "evaluation", "metrics",
        "model", "prediction", "protocol", "report", "stages.evaluate", "training.runtime", "windows",
    ),
}  # fmt: skip


def source_files(parts: Iterable[str]) -> list[Path]:
    """All code below each room, each module's file, and the templates beside them."""
    found: set[Path] = set()
    for part in parts:
        path = PACKAGE / part.replace(".", "/")
        files = path.rglob("*") if path.is_dir() else path.parent.glob(f"{path.name}.*")
        code = {file for file in files if file.suffix in (".py", ".j2")}
        if not code:
            raise FileNotFoundError(f"{path}: no code there")
        found |= code
    return sorted(found)


def code_digest(parts: Iterable[str]) -> str:
    """Of the names and bytes of the source files, whether or not they are loaded."""
    digest = hashlib.sha256()
    for path in source_files(parts):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(PACKAGE).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()
