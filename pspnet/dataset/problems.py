"""Many problems, told so that a person can read them."""

from collections import Counter
from collections.abc import Iterable

from pspnet.errors import Problem

MOST_SHOWN = 20


def shortened(problems: Iterable[Problem]) -> list[Problem]:
    """The first of them, and how many there are of each kind: what was expected is the kind."""
    every = list(problems)
    if len(every) <= MOST_SHOWN:
        return every
    kinds = Counter(problem.expected for problem in every).most_common()
    counts = "; ".join(f"{count:,} x expected {kind}" for kind, count in kinds)
    return [*every[:MOST_SHOWN], Problem("...", f"and {len(every) - MOST_SHOWN:,} more. In all: {counts}")]
