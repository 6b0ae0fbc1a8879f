"""Windows over an image that is too large for one pass, and how what they say is blended where they overlap."""

from collections.abc import Sequence

import torch
from torch import Tensor


def windows(length: int, window: int, overlap: int) -> list[slice]:
    """Windows of one size that cover `length`; the last is moved back to end with it."""
    if length <= window:
        return [slice(0, length)]
    last = length - window
    return [slice(start, start + window) for start in (*range(0, last, window - overlap), last)]


def shares(length: int, parts: Sequence[slice], overlap: int) -> list[Tensor]:
    """What each window counts at each of its places. At any place of `length` all shares add up to one.

    A window's share rises from its border over the overlap: at its border, where it knows nothing of what lies
    beyond, it counts least, and no seam shows where it begins.
    """
    side = parts[0].stop - parts[0].start
    places = torch.arange(side)
    ramp = torch.minimum(places, side - 1 - places).clamp(max=overlap) + 1.0
    total = torch.zeros(length)
    for part in parts:
        total[part] += ramp
    return [ramp / total[part] for part in parts]
