"""How tests wait: for a condition, with a generous limit, or on a fake clock, where no time passes."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    met: Callable[[], T], seconds: float = 120, otherwise: str | Callable[[], str] = "", pause: float = 0.02
) -> T:
    """Wait until `met` returns a true value, and return that value. `otherwise`: the message if that never happens."""
    deadline = time.monotonic() + seconds
    while not (found := met()):
        if time.monotonic() > deadline:
            raise AssertionError(f"timed out after {seconds:g} s: {otherwise() if callable(otherwise) else otherwise}")
        time.sleep(pause)
    return found


class Clock:
    """A clock that advances only in `sleep`."""

    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds
