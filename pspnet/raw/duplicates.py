"""Find duplicate images: identical bytes anywhere, or pictures in two splits that look the same at a glance."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pspnet.dataset.store.splits import Split
from pspnet.raw.images import GLANCE_PX

# Of two images, the image in the split with the higher rank is kept. Losing a training image is better than losing a
# test image.
RANK: dict[Split, int] = {"test": 3, "val": 2, "train": 1, "unlabeled": 0}
HELD_OUT = RANK["val"]
FLAT = 24  # gray levels between the darkest and the brightest part; below this contrast nothing is recognizable
MOST_BITS = 15  # bits of 256 that may differ; with 16 bands, at least one is always equal
MOST_LEVELS = 2.5  # mean difference between two glances, in gray levels
WINDOW = 24  # number of neighbors compared in each band; the limit keeps the time linear

Pairs = dict[int, int]  # index of the image to drop -> index of the image to keep


def copies(digests: NDArray[np.uint8], worth: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return sorted pairs: (index of a copy, index of the image to keep). `digests`: (N, 32).

    Among identical images, the one with the highest worth is kept, or the first of them on a tie. Images with negative
    worth are not considered.
    """
    candidates = np.flatnonzero(worth >= 0)
    parts = digests[candidates].view(np.uint64).T  # (4, N)
    order = candidates[np.lexsort([candidates, -worth[candidates], *parts])]
    return sorted((copy, kept) for kept, *rest in _equal(digests, order) for copy in rest)


def contradictions(
    digests: NDArray[np.uint8], mask_digests: NDArray[np.uint8], is_labeled: NDArray[np.bool_]
) -> list[tuple[int, int]]:
    """Return sorted pairs: (index of an image, index of an identical image with a different mask). `digests`,
    `mask_digests`: (N, 32)
    """
    candidates = np.flatnonzero(is_labeled)
    order = candidates[np.lexsort([candidates, *digests[candidates].view(np.uint64).T])]
    pairs = []
    for group in _equal(digests, order):
        as_first = (mask_digests[group] == mask_digests[group[0]]).all(axis=1)
        if not as_first.all():
            other = group[int(as_first.argmin())]
            pairs += [(place, other if same else group[0]) for place, same in zip(group, as_first, strict=True)]
    return sorted(pairs)


def _equal(digests: NDArray[np.uint8], order: NDArray[np.int64]) -> Iterator[list[int]]:
    """Yield groups of indices with equal digests. Equal digests are adjacent in `order`."""
    same = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
    group: list[int] = []
    for place in np.flatnonzero(same).tolist():
        if not (place and same[place - 1]):
            if group:
                yield group
            group = [int(order[place])]
        group.append(int(order[place + 1]))
    if group:
        yield group


def hashes_of(glances: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Hash small gray pictures: (N, GLANCE_PX, GLANCE_PX) -> (N, 32). A bit is set where a picture gets brighter from
    one pixel to the next. A flat picture gives all zeros.
    """
    bits = glances[:, : GLANCE_PX - 1, 1:] > glances[:, : GLANCE_PX - 1, :-1]
    hashes = np.packbits(bits.reshape(len(glances), -1), axis=1)
    hashes[np.ptp(glances.reshape(len(glances), -1), axis=1) < FLAT] = 0
    return hashes


def look_alikes(hashes: NDArray[np.uint8], ranks: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return pairs of images from two splits, at least one of them held out, that might look the same. The image with
    the lower rank comes first. `hashes`: (N, 32).
    """
    found: set[tuple[int, int]] = set()
    for one, other in _neighbors(hashes, np.flatnonzero(ranks >= 0)):
        leaks = (ranks[one] != ranks[other]) & (np.maximum(ranks[one], ranks[other]) >= HELD_OUT)
        own, others = one[leaks], other[leaks]
        alike = _are_alike(hashes, own, others)
        for a, b in zip(own[alike].tolist(), others[alike].tolist(), strict=True):
            found.add((a, b) if ranks[a] < ranks[b] else (b, a))
    return sorted(found)


def repeated(hashes: NDArray[np.uint8], ranks: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return (N,) flags: whether a held-out picture looks like another picture in its split, as video frames do."""
    marks = np.zeros(len(hashes), bool)
    for one, other in _neighbors(hashes, np.flatnonzero(ranks >= HELD_OUT)):
        alike = (ranks[one] == ranks[other]) & _are_alike(hashes, one, other)
        marks[one[alike]] = marks[other[alike]] = True
    return marks


def _neighbors(
    hashes: NDArray[np.uint8], candidates: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield arrays of pairs to compare. Each hash is cut into 16 bands, and only pictures that share a band are
    compared.
    """
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
