"""Weights files as other projects write them, with the names and shapes from formats/ and random tensors."""

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMATS = Path(__file__).with_name("formats")
FEWEST_CHANNELS = 32  # sizes below this are numbers of classes, colors or kernel pixels


class Trap:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def random_tensors(name: str, seed: int = 0, narrow: int = 1) -> dict[str, Tensor]:
    """Return random tensors, scaled so that features neither vanish nor explode. Channels are divided by `narrow`."""
    return dict(_random_tensors(name, seed, narrow))


@lru_cache(maxsize=3)
def _random_tensors(name: str, seed: int, narrow: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for line in (FORMATS / f"{name}.txt").read_text().splitlines():
        key, _, shape = line.partition(" ")
        full = [] if shape == "scalar" else [int(length) for length in shape.split("x")]
        size = [length // narrow if length >= FEWEST_CHANNELS else length for length in full]
        tensors[key] = _tensor(key, size, generator)
    return tensors


def _tensor(key: str, size: list[int], generator: torch.Generator) -> Tensor:
    if not size:
        return torch.tensor(7)
    if key.endswith("running_var"):
        return torch.rand(size, generator=generator) * 0.7 + 0.8
    if len(size) == 1:
        middle = 0.6 if key.endswith("weight") else 0.0
        return middle + 0.1 * torch.randn(size, generator=generator)
    fan_in = math.prod(size[1:])
    return torch.randn(size, generator=generator) * math.sqrt(2 / fan_in)
