"""Many problems, told so that a person can read them."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from pspnet.errors import Problem

MOST_SHOWN = 20


def shortened(problems: Iterable[Problem]) -> list[Problem]:
    """Of many only the first, the advice once for each kind, and how many there are: what was expected is the kind."""
    every = list(problems)
    if len(every) <= MOST_SHOWN:
        return every
    kinds = Counter(problem.expected for problem in every)
    shown, told = [], set()
    for problem in every[:MOST_SHOWN]:
        shown.append(replace(problem, expected="", fix="") if problem.expected in told else problem)
        told.add(problem.expected)
    counts = "; ".join(f"{count:,} x expected {kind}" for kind, count in kinds.most_common())
    return [*shown, Problem("...", f"and {len(every) - MOST_SHOWN:,} more. In all: {counts}")]


def located(problems: Iterable[Problem], root: Path) -> list[Problem]:
    """In a message paths are those of the reader; in the dataset they are below the raw folder."""
    return [replace(problem, where=str(root / problem.where)) for problem in problems]
