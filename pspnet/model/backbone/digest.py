"""The digest that identifies a bundle or a backbone. It does not need torch, because every registry command computes
it.
"""

import hashlib
from pathlib import Path


def digest(folder: Path) -> str:
    """Return the digest of a folder of weights and facts, computed from nothing but file names and bytes."""
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            total.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()
