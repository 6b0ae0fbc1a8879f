"""The one way in which tests wait: for a condition, and generously, since a machine may be slow."""

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
