"""Verdicts on problems by the policies of params.yaml, and long lists of problems made readable."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pspnet.config.prepare import PrepareParams, ProblemsParams
from pspnet.errors import Problem, UserError

MOST_SHOWN = 20
NO_FILES = ("contradicting_splits", "absent_class")  # kinds of problems that concern groups and splits, not files

Outcome = Literal["error", "quarantined", "duplicate", "left out", "fixed", "allowed"]
KEPT: tuple[Outcome, ...] = ("fixed", "allowed")  # the image is used


@dataclass(frozen=True)
class Verdict:
    problem: Problem
    outcome: Outcome


def judge(problem: Problem, policies: ProblemsParams, mended: bool = False) -> Verdict:
    """The verdict that the policy for this kind gives; `mended` says that the policy `fix` has been carried out."""
    match getattr(policies, problem.kind):
        case "error":
            return Verdict(problem, "error")
        case "allow":
            return Verdict(problem, "allowed")
        case "fix" if mended:
            return Verdict(problem, "fixed")
    return Verdict(problem, "quarantined")


def stop_for(verdicts: Sequence[Verdict], found: int, prepare: PrepareParams, raw: Path) -> None:
    """Raises if a policy says so or too many files are quarantined. `found` counts images and other files."""
    if errors := [one.problem for one in verdicts if one.outcome == "error"]:
        kinds = ", ".join(sorted({f"{problem.kind}: error" for problem in errors}))
        raise UserError(shortened(located(errors, raw)), f"prepare.problems says {kinds}.")
    quarantined = [one.problem for one in verdicts if one.outcome == "quarantined"]
    if quarantined and len(quarantined) / found > prepare.tolerated_share:
        count = f"{len(quarantined):,} of {found:,} files cannot be used"
        raise UserError(
            shortened(located(quarantined, raw)), f"{count}; prepare.tolerated_share is {prepare.tolerated_share:.1%}."
        )


def shortened(problems: Iterable[Problem]) -> list[Problem]:
    """The first of many problems, with advice once per kind, then counts; problems of a kind share `expected`."""
    every = list(problems)
    if len(every) <= MOST_SHOWN:
        return every
    kinds = Counter(problem.expected for problem in every)
    shown, advised = [], set()
    for problem in every[:MOST_SHOWN]:
        shown.append(replace(problem, expected="", fix="") if problem.expected in advised else problem)
        advised.add(problem.expected)
    counts = "; ".join(f"{count:,} x expected {kind}" for kind, count in kinds.most_common())
    return [*shown, Problem("...", f"and {len(every) - MOST_SHOWN:,} more. In all: {counts}")]


def located(problems: Iterable[Problem], root: Path) -> list[Problem]:
    """The problems with full paths, for messages; in the dataset, paths are relative to the raw folder."""
    return [
        problem if problem.kind in NO_FILES else replace(problem, where=str(root / problem.where))
        for problem in problems
    ]
