"""Seals: the digest of all files of a version, signed if PSPNET_AUDIT_KEY is set.

MLflow stores the digest, and an artifact store contains the files. Someone who can write only to the store cannot
change a version unnoticed. Someone who can write to MLflow can change both, unless there is a key that MLflow does not
have.
"""

import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from pathlib import Path

from pspnet.errors import Problem, UserError

KEY = "PSPNET_AUDIT_KEY"
SHORTEST_KEY = 16  # minimum number of characters
CONTENT, SIGNATURE = "pspnet.content", "pspnet.signature"  # tags of a version


def content_digest(folder: Path) -> str:
    """Return a digest of the names and contents of all files in the folder."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_dir():
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            total.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return total.hexdigest()


def seal(model: str, bundle: str, content: str) -> dict[str, str]:
    """Return the tags that seal a version."""
    return {CONTENT: content, SIGNATURE: signature(_facts(model, bundle, content))}


def is_signed(model: str, bundle: str, tags: Mapping[str, str]) -> bool:
    """Return whether the seal in these tags is signed with this process's key. Without a key, any seal is accepted."""
    return is_signature(tags.get(SIGNATURE, ""), _facts(model, bundle, tags.get(CONTENT, "")))


def signature(facts: Mapping[str, str]) -> str:
    """Return the HMAC-SHA256 of the facts, or an empty string without a key."""
    key = _key()
    if not key:
        return ""
    message = json.dumps(dict(facts), sort_keys=True, ensure_ascii=False).encode()
    return hmac.new(key.encode(), message, hashlib.sha256).hexdigest()


def is_signature(found: str, facts: Mapping[str, str]) -> bool:
    return not has_key() or hmac.compare_digest(found.encode(), signature(facts).encode())


def has_key() -> bool:
    return bool(_key())


def _key() -> str:
    key = os.environ.get(KEY, "")
    if key and len(key) < SHORTEST_KEY:
        expected = f"at least {SHORTEST_KEY}; `openssl rand -hex 32` makes a good key"
        raise UserError(Problem(KEY, f"has {len(key)} characters", expected))
    return key


def _facts(model: str, bundle: str, content: str) -> dict[str, str]:
    return {"model": model, "bundle": bundle, "content": content}
