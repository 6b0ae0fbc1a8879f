"""A sample as it was found, and what decides where it goes."""

import hashlib
from dataclasses import dataclass
from typing import Literal, get_args

Split = Literal["train", "val", "test", "unlabeled"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class RawSample:
    """Paths are relative to the raw folder, with forward slashes."""

    id: str
    image: str
    mask: str | None
    group: str
    split: Split | None  # where the layout itself says so


def stable_uniform(text: str) -> float:
    """A number in [0, 1) that is the same for this text on every machine, for ever."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
