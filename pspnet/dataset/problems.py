"""Many problems, told so that a person can read them, and what becomes of each."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pspnet.config.prepare import PrepareParams, ProblemsParams
from pspnet.errors import Problem, UserError

MOST_SHOWN = 20
NO_FILES = ("contradicting_splits", "absent_class")  # kinds of problems of groups and splits

Outcome = Literal["error", "quarantined", "duplicate", "left out", "fixed", "allowed"]
KEPT: tuple[Outcome, ...] = ("fixed", "allowed")  # the image is used


@dataclass(frozen=True)
class Told:
    problem: Problem
    outcome: Outcome


def judged(problem: Problem, policies: ProblemsParams, mended: bool = False) -> Told:
    """By the policy of its kind; `mended` says that what `fix` promises has been done."""
    match getattr(policies, problem.kind):
        case "error":
            return Told(problem, "error")
        case "allow":
            return Told(problem, "allowed")
        case "fix" if mended:
            return Told(problem, "fixed")
    return Told(problem, "quarantined")


def stop_for(told: Sequence[Told], found: int, prepare: PrepareParams, raw: Path) -> None:
    """Where a policy says so, or too many are quarantined. `found`: images and other files."""
    if errors := [one.problem for one in told if one.outcome == "error"]:
        kinds = ", ".join(sorted({f"{problem.kind}: error" for problem in errors}))
        raise UserError(shortened(located(errors, raw)), f"prepare.problems says {kinds}.")
    quarantined = [one.problem for one in told if one.outcome == "quarantined"]
    if quarantined and len(quarantined) / found > prepare.tolerated_share:
        count = f"{len(quarantined):,} of {found:,} files cannot be used"
        raise UserError(
            shortened(located(quarantined, raw)), f"{count}; prepare.tolerated_share is {prepare.tolerated_share:.1%}."
        )


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
    return [
        problem if problem.kind in NO_FILES else replace(problem, where=str(root / problem.where))
        for problem in problems
    ]
