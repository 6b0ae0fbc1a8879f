"""Fuzzing: each target is a module here, and `python -m tests.fuzz NAME --minutes N` runs it.

A target has `INPUTS`, a hypothesis strategy of bytes, and `one(data, folder)`, which raises if it handles the input
badly; `folder` is empty and used only for this input. Inputs that once failed are in `seeds/NAME` and run as tests.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from hypothesis.strategies import SearchStrategy

HERE = Path(__file__).parent


class Target(NamedTuple):
    name: str
    inputs: SearchStrategy[bytes]
    one: Callable[[bytes, Path], None]

    @property
    def seeds(self) -> list[Path]:
        return sorted((HERE / "seeds" / self.name).glob("*"))


def names() -> list[str]:
    return sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith(("_", "test_")))


def target(name: str) -> Target:
    module = import_module(f"tests.fuzz.{name}")
    return Target(name, module.INPUTS, module.one)
