"""The splits, and the stable hash that assigns samples to them."""

import hashlib
from typing import Literal, get_args

Split = Literal["train", "val", "test", "unlabeled"]
SPLITS: tuple[Split, ...] = get_args(Split)
ANNOTATED: tuple[Split, ...] = ("train", "val", "test")  # each of these needs masks
FIRST: tuple[Split, ...] = ("test", "val", "train", "unlabeled")  # a sample in two splits goes to the first of these


def stable_uniform(text: str) -> float:
    """Return a number in [0, 1) that is the same for this text on every machine, forever."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
