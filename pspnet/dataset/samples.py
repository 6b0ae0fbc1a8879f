"""Where a sample may go, and what decides it."""

import hashlib
from typing import Literal, get_args

Split = Literal["train", "val", "test", "unlabeled"]
SPLITS: tuple[Split, ...] = get_args(Split)
ANNOTATED: tuple[Split, ...] = ("train", "val", "test")  # each needs masks
FIRST: tuple[Split, ...] = ("test", "val", "train", "unlabeled")  # what is in two of them belongs to the first


def stable_uniform(text: str) -> float:
    """A number in [0, 1) that is the same for this text on every machine, for ever."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
