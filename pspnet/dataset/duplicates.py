"""Images that are there twice: the same bytes, or the same picture at a glance in two splits."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pspnet.dataset.images import GLANCE_PX
from pspnet.dataset.samples import Split

# What a split is worth when one of two images must go: rather less to learn from than less to measure on.
RANK: dict[Split, int] = {"test": 3, "val": 2, "train": 1, "unlabeled": 0}
HELD_OUT = RANK["val"]
FLAT = 24  # gray levels between the darkest and the brightest part: less shows nothing to be recognised by
MOST_BITS = 15  # of 256 that may differ: with one band more than that, one of them is always equal
MOST_LEVELS = 2.5  # by which two glances may differ on average
WINDOW = 24  # neighbours looked at in a band: what makes the time linear

Pairs = dict[int, int]  # the one that is worth less -> the other, by place


def copies(digests: NDArray[np.uint8], worth: NDArray[np.int64]) -> list[tuple[int, int]]:
    """(a copy, the one of most worth that is kept) by place; of equal worth the first is kept, and one of less than
    nothing is none. `digests`: (N, 32).
    """
    candidates = np.flatnonzero(worth >= 0)
    parts = digests[candidates].view(np.uint64).T  # (4, N)
    order = candidates[np.lexsort([candidates, -worth[candidates], *parts])]
    same = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
    pairs, kept = [], -1
    for place in np.flatnonzero(same).tolist():
        if not (place and same[place - 1]):
            kept = int(order[place])
        pairs.append((int(order[place + 1]), kept))
    return sorted(pairs)


def hashes_of(glances: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, GLANCE_PX, GLANCE_PX) -> (N, 32): a bit where a picture gets brighter; 0 if it is flat."""
    bits = glances[:, : GLANCE_PX - 1, 1:] > glances[:, : GLANCE_PX - 1, :-1]
    hashes = np.packbits(bits.reshape(len(glances), -1), axis=1)
    hashes[np.ptp(glances.reshape(len(glances), -1), axis=1) < FLAT] = 0
    return hashes


def look_alikes(hashes: NDArray[np.uint8], ranks: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Pairs that may look the same, one of them held out, the one of less rank first. `hashes`: (N, 32)."""
    found: set[tuple[int, int]] = set()
    for one, other in _neighbours(hashes, np.flatnonzero(ranks >= 0)):
        leaks = (ranks[one] != ranks[other]) & (np.maximum(ranks[one], ranks[other]) >= HELD_OUT)
        own, others = one[leaks], other[leaks]
        alike = _are_alike(hashes, own, others)
        for a, b in zip(own[alike].tolist(), others[alike].tolist(), strict=True):
            found.add((a, b) if ranks[a] < ranks[b] else (b, a))
    return sorted(found)


def repeated(hashes: NDArray[np.uint8], ranks: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N,) which of the held-out pictures look like another of their split, as frames of a video do."""
    marks = np.zeros(len(hashes), bool)
    for one, other in _neighbours(hashes, np.flatnonzero(ranks >= HELD_OUT)):
        alike = (ranks[one] == ranks[other]) & _are_alike(hashes, one, other)
        marks[one[alike]] = marks[other[alike]] = True
    return marks


def _neighbours(
    hashes: NDArray[np.uint8], candidates: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Two and two of them to compare. A hash is cut into 16 bands; only pictures that share a band are compared."""
    candidates = candidates[hashes[candidates].any(axis=1)]
    bands = hashes.view(np.uint16)
    for band in bands.T:
        order = candidates[np.lexsort([*bands[candidates].T, band[candidates]])]
        for step in range(1, min(WINDOW, len(order))):
            one, other = order[:-step], order[step:]
            same = band[one] == band[other]
            if not same.any():
                break
            yield one[same], other[same]


def _are_alike(hashes: NDArray[np.uint8], one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.bool_]:
    return _ONES[hashes[one] ^ hashes[other]].sum(axis=1, dtype=np.int64) <= MOST_BITS  # type: ignore[no-any-return]


def really_alike(pairs: Sequence[tuple[int, int]], glances: Mapping[int, NDArray[np.uint8]]) -> Pairs:
    alike: Pairs = {}
    for less, more in pairs:
        levels = np.abs(glances[less].astype(np.int64) - glances[more]).mean()
        if levels <= MOST_LEVELS and less not in alike:
            alike[less] = more
    return alike


_ONES = np.array([byte.bit_count() for byte in range(256)], np.uint8)
