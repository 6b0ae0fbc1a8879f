"""Windows that cover an image too large for one pass, and the weights of the windows where they overlap."""

from collections.abc import Sequence

import torch
from torch import Tensor


def windows(length: int, window: int, overlap: int) -> list[slice]:
    """Windows of the same size that cover `length`. The last window is moved back to end where `length` ends."""
    if length <= window:
        return [slice(0, length)]
    last = length - window
    return [slice(start, start + window) for start in (*range(0, last, window - overlap), last)]


def shares(length: int, parts: Sequence[slice], overlap: int) -> list[Tensor]:
    """The weight of each window at each of its positions. At every position in `length`, the weights add up to 1.

    Across the overlap, a window's weight rises from its border inward. The weight is lowest at the border, where the
    network sees the least context, so that no seam is visible.
    """
    side = parts[0].stop - parts[0].start
    places = torch.arange(side)
    ramp = torch.minimum(places, side - 1 - places).clamp(max=overlap) + 1.0
    total = torch.zeros(length)
    for part in parts:
        total[part] += ramp
    return [ramp / total[part] for part in parts]
