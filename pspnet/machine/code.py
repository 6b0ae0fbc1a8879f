"""The code that a stage's results depend on, and its digest, shared by DVC, checkpoints, runs and pieces.

`dvc.yaml` lists the same files and folders, and a test keeps the two in sync. `errors`, `machine`, `printable` and
`tracking` are not listed because they do not affect results. The types of `backbone`, `optimizer` and `runtime` in
`config` are not listed either, because their values are already dependencies.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
CODE: dict[str, tuple[str, ...]] = {
    "prepare": ("config/dataset.py", "config/prepare.py", "dataset/store", "raw", "stages/prepare.py"),
    "pretrain": (
        "config/pretrain.py", "dataset", "evaluation/pages", "evaluation/pretraining", "metrics.py", "model/backbone",
        "model/device.py", "selfsup", "stages/pretrain.py", "training/pretrain.py", "training/shared",
    ),
    "finetune": (
        "config/finetune.py", "dataset", "evaluation/measuring.py", "losses", "metrics.py", "model", "prediction/image",
        "semisup", "stages/finetune.py", "training",
    ),
    "evaluate": (
        "config/evaluate.py", "config/predict.py", "dataset", "evaluation", "metrics.py", "model", "prediction/image",
        "stages/evaluate.py",
    ),
}  # fmt: skip
# An edit to the page of `pretrain` writes it again, but its checkpoint, which may hold days of training, is kept.
PAGE = ("evaluation/pages", "evaluation/pretraining", "metrics.py")
WEIGHTS = {
    "pretrain": tuple(part for part in CODE["pretrain"] if part not in PAGE),
    "finetune": CODE["finetune"],
}


def source_files(paths: Iterable[str]) -> list[Path]:
    """Return every module and template in these files and folders of the package, each only once."""
    found: set[Path] = set()
    for path in (PACKAGE / name for name in paths):
        files = [path] if path.is_file() else path.rglob("*")
        code = {file for file in files if file.suffix in (".py", ".j2")}
        if not code:
            raise FileNotFoundError(f"{path}: no code there")
        found |= code
    return sorted(found)


def code_digest(paths: Iterable[str]) -> str:
    """Return the digest of the source files' names and bytes, whether or not Python has loaded them."""
    digest = hashlib.sha256()
    for path in source_files(paths):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(PACKAGE).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()
