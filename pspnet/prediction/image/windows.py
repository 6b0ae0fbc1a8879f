"""Windows over an image that is too large for one pass, and their weights where they overlap."""

from collections.abc import Sequence

import torch
from torch import Tensor


def windows(length: int, window: int, overlap: int) -> list[slice]:
    """Windows of the same size that cover `length`; the last is moved back to end where `length` ends."""
    if length <= window:
        return [slice(0, length)]
    last = length - window
    return [slice(start, start + window) for start in (*range(0, last, window - overlap), last)]


def shares(length: int, parts: Sequence[slice], overlap: int) -> list[Tensor]:
    """The weight of each window at each of its positions; the weights add up to 1 at every position in `length`.

    A weight rises across the overlap, from the window's border inward.

    It is lowest at the border, where the window does not show what is beyond, so that no seam is visible.
    """
    side = parts[0].stop - parts[0].start
    places = torch.arange(side)
    ramp = torch.minimum(places, side - 1 - places).clamp(max=overlap) + 1.0
    total = torch.zeros(length)
    for part in parts:
        total[part] += ramp
    return [ramp / total[part] for part in parts]
