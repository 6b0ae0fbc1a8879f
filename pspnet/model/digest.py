"""By which number a bundle or a backbone is known. Needs no torch: the registry asks for it on every call."""

import hashlib
from pathlib import Path


def digest(folder: Path) -> str:
    """One number for a folder of weights and facts: their names and bytes, nothing else."""
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            total.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()
