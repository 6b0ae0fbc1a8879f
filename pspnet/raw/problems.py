"""Verdicts on problems under the policies in params.yaml, and readable summaries of long lists."""

import csv
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from pspnet.config.prepare import PrepareParams, ProblemsParams
from pspnet.errors import Problem, UserError
from pspnet.machine.outputs import whole_file
from pspnet.printable import cell

MOST_SHOWN = 20
COLUMNS = ("file", "kind", "outcome", "found", "expected", "fix")
NO_FILES = ("contradicting_splits", "absent_class")  # kinds of problems with groups and splits, not files

Outcome = Literal["error", "quarantined", "duplicate", "left out", "fixed", "allowed"]
KEPT: tuple[Outcome, ...] = ("fixed", "allowed")  # the image is used


@dataclass(frozen=True)
class Verdict:
    problem: Problem
    outcome: Outcome
    mendable: bool = False  # whether the `fix` policy can repair the problem


def judge(problem: Problem, policies: ProblemsParams, mendable: bool = False) -> Verdict:
    """Return the verdict under the policy for this kind."""
    match getattr(policies, problem.kind):
        case "error":
            return Verdict(problem, "error", mendable)
        case "allow":
            return Verdict(problem, "allowed", mendable)
        case "fix" if mendable:
            return Verdict(problem, "fixed", mendable)
    return Verdict(problem, "quarantined", mendable)


def stop_for(
    verdicts: Sequence[Verdict], found: int, prepare: PrepareParams, raw: Path, listing: Path,
    lacking: Sequence[Problem] = (),
) -> None:  # fmt: skip
    """Raise if a policy says so, too many files are quarantined, or splits lack masks (`lacking`). `listing` then lists
    every problem. `found` is the number of images and other files.
    """
    errors = [one for one in verdicts if one.outcome == "error"]
    quarantined = [one for one in verdicts if one.outcome == "quarantined"]
    share = len(quarantined) / found if quarantined else 0.0
    too_many = share > prepare.tolerated_share
    if not (errors or too_many or lacking):
        return
    stopping = [*errors, *(quarantined if too_many or lacking else [])]
    every = [*(Verdict(problem, "error") for problem in lacking), *verdicts]
    with whole_file(listing) as partial:
        write_problems(partial, every)
    said = []
    if errors:
        said.append(f"prepare.problems says {', '.join(sorted({f'{one.problem.kind}: error' for one in errors}))}.")
    if too_many:
        count = f"{len(quarantined):,} of {found:,} files ({share:.1%}) cannot be used"
        said.append(f"{count}; prepare.tolerated_share is {prepare.tolerated_share:.1%}.")
    choices = helpful(stopping)
    if too_many:
        leaves_out = f"leaves out {counted(len(quarantined), 'file')}"
        choices.append(f"prepare.tolerated_share: {math.ceil(share * 1000) / 1000}  # {leaves_out}")
    if choices:
        said += ["To continue without repairing them, set in params.yaml:", *(f"  {line}" for line in choices)]
    said.append(f"{listing} lists {counted(len(every), 'problem')}.")
    shown = [*lacking, *located((one.problem for one in stopping), raw)]
    raise UserError(shortened(shown), "\n".join(said))


def helpful(stopping: Sequence[Verdict]) -> list[str]:
    """Return, as lines of params.yaml, the policies under which these problems would not stop the stage."""
    lines = []
    kinds = Counter((one.problem.kind, one.outcome) for one in stopping)
    for (kind, outcome), count in sorted(kinds.items()):
        choices = get_args(ProblemsParams.model_fields[kind].annotation)
        mendable = any(one.mendable for one in stopping if one.problem.kind == kind)
        wanted = (*(["fix"] if mendable else []), "allow", *(["quarantine"] if outcome == "error" else []))
        if options := [choice for choice in wanted if choice in choices]:
            lines.append(f"prepare.problems.{kind}: {' or '.join(options)}  # for {counted(count, 'problem')}")
    return lines


def counted(count: int, name: str) -> str:
    """Return the count with its noun: `1 file`, `2 files`."""
    return f"{count:,} {name}" if count == 1 else f"{count:,} {name}s"


def in_order(verdicts: Iterable[Verdict]) -> list[Verdict]:
    return sorted(verdicts, key=lambda one: (one.outcome, one.problem.kind, one.problem.where))


def write_problems(path: Path, verdicts: Iterable[Verdict]) -> None:
    """Write the problems as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        for one in in_order(verdicts):
            problem = one.problem
            texts = (problem.where, problem.kind, one.outcome, problem.found, problem.expected, problem.fix)
            rows.writerow(map(cell, texts))


def shortened(problems: Iterable[Problem]) -> list[Problem]:
    """Return the first of many problems, with advice once per kind, then counts. Problems of a kind share
    `expected`.
    """
    every = list(problems)
    if len(every) <= MOST_SHOWN:
        return every
    kinds = Counter(problem.expected for problem in every)
    shown, advised = [], set()
    for problem in every[:MOST_SHOWN]:
        shown.append(replace(problem, expected="", fix="") if problem.expected in advised else problem)
        advised.add(problem.expected)
    counts = "; ".join(f"{count:,} x expected {kind}" for kind, count in kinds.most_common())
    rest = len(every) - MOST_SHOWN
    return [*shown, Problem("...", f"and {rest:,} more. In all: {counts}", count=rest)]


def located(problems: Iterable[Problem], root: Path) -> list[Problem]:
    """Return the problems with full paths, for messages. In the dataset, paths are relative to the raw folder."""
    return [
        problem if problem.kind in NO_FILES else replace(problem, where=str(root / problem.where))
        for problem in problems
    ]
