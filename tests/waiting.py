"""The two ways in which tests wait: for a condition, generously, and on a clock of their own, not at all."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    met: Callable[[], T], seconds: float = 120, otherwise: str | Callable[[], str] = "", pause: float = 0.02
) -> T:
    """What `met` returned once it was true; `otherwise`: what to say if it never is; `pause`: between two looks."""
    deadline = time.monotonic() + seconds
    while not (found := met()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {otherwise() if callable(otherwise) else otherwise}")
        time.sleep(pause)
    return found


class Clock:
    """Time goes by only while somebody sleeps."""

    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds
