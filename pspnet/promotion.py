"""The gate: two reports and the rules -> a decision that says why. It reads nothing but what it is handed.

refused   a rule is broken that nobody may overrule
held      only such rules are broken that a person may overrule (`forced`)
passed    the candidate may become the champion
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray

from pspnet.config.promotion import PromotionParams
from pspnet.metrics import iou, mean_over_classes
from pspnet.report import EvaluationReport

Outcome = Literal["passed", "refused", "held"]
Interval = tuple[float, float]
MAY_BE_FORCED = {"not rolled back", "same classes"}
CONFIDENCE = 0.95
ROUNDING = 1e-12  # 0.8 - 0.7 is less than 0.1 by 1e-16: what misses a limit by less than this has reached it
DRAWN_AT_ONCE = 2**21  # numbers: 16 MB, however many groups there are


@dataclass(frozen=True)
class Reason:
    rule: str
    passed: bool
    text: str


@dataclass(frozen=True)
class Side:
    bundle: str  # digest
    version: int | None
    mean_iou: float | None  # None: no class has an IoU
    class_iou: dict[str, float | None]  # None: absent
    images: int


@dataclass(frozen=True)
class Decision:
    outcome: Outcome
    reasons: tuple[Reason, ...]  # every rule that was looked at, in one order
    candidate: Side
    champion: Side | None
    fingerprint: str  # of the test split
    difference: float | None  # candidate - champion, in mean IoU; None: there is nothing to compare
    interval: Interval | None  # that holds the difference with 95 % confidence
    rules: dict[str, Any]
    earlier_decisions: int  # that this test split has made before
    forced: bool

    @property
    def digest(self) -> str:
        """The same for decisions on the same grounds, whenever they are made and whatever the versions are called."""
        grounds = {
            "candidate": self.candidate.bundle,
            "champion": self.champion and self.champion.bundle,
            "fingerprint": self.fingerprint,
            "rules": self.rules,
            "outcome": self.outcome,
            "results": [(reason.rule, reason.passed) for reason in self.reasons],
            "forced": self.forced,
        }
        return hashlib.sha256(json.dumps(grounds, sort_keys=True, allow_nan=False).encode()).hexdigest()

    def summary(self) -> str:
        if self.outcome != "passed":
            return f"{self.outcome}: " + "; ".join(reason.text for reason in self.reasons if not reason.passed)
        text = f"mIoU {_score(self.candidate.mean_iou)}, "
        if self.champion is None:
            text += "and there is no champion to compare with"
        elif self.difference is None or self.interval is None:
            text += f"not comparable with the champion's {_score(self.champion.mean_iou)}"
        else:
            gain = f"{abs(self.difference):.3f} {'below' if self.difference < 0 else 'above'}"
            gain = "level with" if abs(self.difference) <= ROUNDING else gain
            low, high = self.interval
            text += f"{gain} the champion's {_score(self.champion.mean_iou)} (95 % interval {low:z.3f} to {high:z.3f})"
        overruled = any(not reason.passed for reason in self.reasons)
        return f"passed: {text}" + ("; forced by a person" if overruled else "")

    def as_json(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        return facts

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Self:
        champion, interval = facts["champion"], facts["interval"]
        parts = {
            "reasons": tuple(Reason(**reason) for reason in facts["reasons"]),
            "candidate": Side(**facts["candidate"]),
            "champion": champion and Side(**champion),
            "interval": interval and tuple(interval),
        }
        return cls(**{**facts, **parts})


def decide(
    candidate: EvaluationReport,
    champion: EvaluationReport | None,
    rules: PromotionParams,
    *,
    candidate_version: int | None,
    champion_version: int | None,
    predicts_the_same: str | None,
    withdrawn: str | None,
    earlier_decisions: int,
    forced: bool,
) -> Decision:
    """`predicts_the_same` is None, or how the registered version differs; `withdrawn` is None, or how it came to be
    rolled back. The champion's report is of the candidate's test split: whoever calls has it measured there first.
    """
    reasons = [_loads_and_predicts(predicts_the_same), _not_rolled_back(withdrawn), _floor(candidate, rules)]
    difference, interval = None, None
    if champion is not None:
        comparable = list(_comparable(candidate, champion))
        reasons += comparable
        if all(reason.passed for reason in comparable):
            if not math.isnan(candidate.mean_iou - champion.mean_iou):
                difference, interval = paired_bootstrap(
                    candidate.images, champion.images, candidate.classes, rules.resamples
                )
            reasons += [
                _gain(candidate, champion, difference, interval, rules),
                _class_loss(candidate, champion, rules),
            ]
    broken = [reason.rule for reason in reasons if not reason.passed]
    outcome: Outcome = "passed"
    if not MAY_BE_FORCED.issuperset(broken):
        outcome = "refused"
    elif broken and not forced:
        outcome = "held"
    if forced:
        reasons.append(_forced(outcome, broken))
    return Decision(
        outcome=outcome,
        reasons=tuple(reasons),
        candidate=_side(candidate, candidate_version),
        champion=None if champion is None else _side(champion, champion_version),
        fingerprint=candidate.fingerprint,
        difference=difference,
        interval=interval,
        rules=rules.model_dump(),
        earlier_decisions=earlier_decisions,
        forced=forced,
    )


def paired_bootstrap(
    candidate_images: pd.DataFrame,
    champion_images: pd.DataFrame,
    classes: Sequence[str],
    resamples: int,
    seed: int = 0,
) -> tuple[float, Interval]:
    """The difference in mean IoU, candidate - champion, and the percentile interval that holds it with 95 % confidence.

    Groups are drawn, with replacement, since images of one scene go wrong together; and the same groups for both
    models, since what is hard in a scene is hard for both. Each draw's IoUs come from its summed pixels.
    """
    sums = _sums_of_groups(candidate_images, champion_images, classes)  # (G, 4, K)
    groups = len(sums)
    rows = max(1, DRAWN_AT_ONCE // groups)
    rng = np.random.default_rng(seed)
    drawn = []
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        picked = rng.integers(0, groups, (count, groups)) + groups * np.arange(count)[:, None]
        times = np.bincount(picked.ravel(), minlength=count * groups).reshape(count, groups)
        # Floats for the sake of speed, but whole and far below 2**53: no order of adding can change a bit.
        totals = times.astype(np.float64) @ sums.reshape(groups, -1)
        drawn.append(_difference(totals.reshape(count, *sums.shape[1:])))
    differences = np.concatenate(drawn)
    differences = differences[~np.isnan(differences)]  # draws without any labelled pixel
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(differences, (tail, 1 - tail))
    return float(_difference(sums.sum(axis=0))), (float(low), float(high))


def decision_page(decision: Decision) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"score": _score, "signed": _signed}
    template = environment.from_string(Path(__file__).with_name("promotion.html.j2").read_text(encoding="utf-8"))
    return template.render(
        decision=decision,
        headline=decision.summary().removeprefix(f"{decision.outcome}: "),
        classes=_class_rows(decision),
        axis=_axis(decision),
    )


def _loads_and_predicts(difference: str | None) -> Reason:
    text = "the registered version, loaded and asked, predicts what the bundle predicted"
    if difference is not None:
        text = f"the registered version does not predict what the bundle predicts: {difference}"
    return Reason("loads and predicts", difference is None, text)


def _not_rolled_back(withdrawn: str | None) -> Reason:
    text = "this version was never rolled back" if withdrawn is None else withdrawn
    return Reason("not rolled back", withdrawn is None, text)


def _floor(candidate: EvaluationReport, rules: PromotionParams) -> Reason:
    asked = f"at least {_limit(rules.min_mean_iou)} is asked"
    if math.isnan(candidate.mean_iou):
        return Reason("floor", False, f"no test mIoU, since no pixel of the test split is labelled; {asked}")
    text = f"test mIoU {_beside(candidate.mean_iou, rules.min_mean_iou)}, {asked}"
    return Reason("floor", _reaches(candidate.mean_iou, rules.min_mean_iou), text)


def _comparable(candidate: EvaluationReport, champion: EvaluationReport) -> Iterator[Reason]:
    """Up to the first that fails. The classes are part of the fingerprint: with others, the split is another too."""
    for look in (_not_the_champion, _same_classes, _same_test_split):
        yield (reason := look(candidate, champion))
        if not reason.passed:
            return


def _not_the_champion(candidate: EvaluationReport, champion: EvaluationReport) -> Reason:
    same = candidate.bundle == champion.bundle
    return Reason("not the champion", not same, "is the champion already" if same else "is another bundle")


def _same_classes(candidate: EvaluationReport, champion: EvaluationReport) -> Reason:
    if candidate.classes == champion.classes:
        return Reason("same classes", True, f"the {len(candidate.classes)} classes are the champion's")
    new = [name for name in candidate.classes if name not in champion.classes]
    gone = [name for name in champion.classes if name not in candidate.classes]
    changes = [f"{word} {', '.join(names)}" for word, names in (("new", new), ("gone", gone)) if names]
    found = "; ".join(changes) or "the same names in another order"
    text = f"the classes are not the champion's ({found}): gain, its interval and loss by class were not computed"
    return Reason("same classes", False, text)


def _same_test_split(candidate: EvaluationReport, champion: EvaluationReport) -> Reason:
    ours, theirs = candidate.fingerprint, champion.fingerprint
    text = f"both are measured on the test split {ours[:12]}"
    if ours != theirs:
        text = (
            f"measured on the test split {ours[:12]}, the champion on {theirs[:12]}: not comparable until the champion "
            "is evaluated on this one too"
        )
    return Reason("same test split", ours == theirs, text)


def _gain(
    candidate: EvaluationReport,
    champion: EvaluationReport,
    difference: float | None,
    interval: Interval | None,
    rules: PromotionParams,
) -> Reason:
    asked = _limit(rules.min_gain)
    if difference is None or interval is None:
        who = "candidate" if math.isnan(candidate.mean_iou) else "champion"
        return Reason("gain", False, f"no gain, since the {who} has no test mIoU; at least {asked} is asked")
    low, high = interval
    by_difference = rules.gain_measured_by == "difference"
    groups = candidate.images["group"].nunique()
    text = (
        f"gain {_beside(difference, rules.min_gain) if by_difference else f'{difference:z.3f}'} "
        f"({champion.mean_iou:.3f} → {candidate.mean_iou:.3f}), "
        f"95 % interval {f'{low:z.3f}' if by_difference else _beside(low, rules.min_gain)} to {high:z.3f} "
        f"resting on {f'{groups:,} groups' if groups > 1 else '1 group, which shows no spread'}; "
        f"at least {asked} is asked{'' if by_difference else ' of its lower end'}"
    )
    return Reason("gain", _reaches(difference if by_difference else low, rules.min_gain), text)


def _class_loss(candidate: EvaluationReport, champion: EvaluationReport, rules: PromotionParams) -> Reason:
    limit = rules.max_class_loss
    losses, absent = [], []
    for name, new, old in zip(candidate.classes, candidate.class_iou, champion.class_iou, strict=True):
        if math.isnan(new) or math.isnan(old):
            side = "the candidate" if not math.isnan(old) else "the champion" if not math.isnan(new) else "both"
            absent.append(f"{name} (absent for {side})")
        else:
            losses.append((old - new, f"{name} loses {_beside(old - new, limit)} ({old:.3f} → {new:.3f})"))
    losses.sort(key=lambda loss: -loss[0])
    too_much = [text for loss, text in losses if not _reaches(-loss, -limit)]
    parts = [f"no class may lose more than {_limit(limit)} IoU"]
    if too_much:
        parts[0] += ": " + ", ".join(too_much)
    elif losses and losses[0][0] > ROUNDING:
        parts[0] += f", and {losses[0][1]} the most" if len(losses) > 1 else f", and {losses[0][1]}"
    elif losses:
        parts[0] += ", and none loses any"
    if absent:
        parts.append("not to be compared: " + ", ".join(absent))
    return Reason("class loss", not too_much, "; ".join(parts))


def _forced(outcome: Outcome, broken: list[str]) -> Reason:
    if outcome == "refused":
        return Reason("forced", False, "a person forced it, but only what is held can be forced")
    if broken:
        return Reason("forced", True, f"a person forced it past: {', '.join(broken)}")
    return Reason("forced", True, "a person forced it, though nothing held it")


def _side(report: EvaluationReport, version: int | None) -> Side:
    ious = [None if math.isnan(value) else float(value) for value in (report.mean_iou, *report.class_iou)]
    return Side(report.bundle, version, ious[0], dict(zip(report.classes, ious[1:], strict=True)), len(report.images))


def _sums_of_groups(
    candidate_images: pd.DataFrame, champion_images: pd.DataFrame, classes: Sequence[str]
) -> NDArray[np.float64]:
    """(G, 4, K): pixels of each group, intersection and union of the candidate, then of the champion."""
    candidate, champion = (images.set_index("id").sort_index() for images in (candidate_images, champion_images))
    if not candidate.index.is_unique or not candidate.index.equals(champion.index):
        raise ValueError("the two reports are not of the same images")
    columns = [f"{count}_{name}" for count in ("intersection", "union") for name in classes]
    pixels = np.hstack([images[columns].to_numpy(np.float64) for images in (candidate, champion)])
    # The candidate's groups for both: the champion may have been measured when images were grouped otherwise.
    _, group = np.unique(candidate["group"].to_numpy(str), return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    return np.add.reduceat(pixels[order], starts, axis=0).reshape(len(starts), 4, len(classes))


def _difference(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., 4, K) -> (...)"""
    candidate, champion = (mean_over_classes(iou(sums[..., at, :], sums[..., at + 1, :])) for at in (0, 2))
    return candidate - champion


def _reaches(value: float, limit: float) -> bool:
    return value >= limit - ROUNDING


def _limit(limit: float) -> str:
    return text if float(text := f"{limit:.3f}") == limit else repr(limit)


def _beside(value: float, limit: float) -> str:
    """With as many digits, three or more, as show on which side of the limit the value lies."""
    if abs(value - limit) <= ROUNDING:
        return _limit(limit)
    texts = (f"{value:.{digits}f}" for digits in range(3, 14))
    return next((text for text in texts if (float(text) - limit) * (value - limit) > 0), repr(value))


def _score(value: float | None, missing: str = "–") -> str:
    return missing if value is None else f"{value:.3f}"


def _signed(value: float | None, missing: str = "") -> str:
    return missing if value is None else "0.000" if abs(value) < 0.0005 else f"{value:+.3f}".replace("-", "−")


def _class_rows(decision: Decision) -> list[dict[str, Any]]:
    """In the order of the candidate's classes, then those that only the champion knows."""
    new = decision.candidate.class_iou
    old = decision.champion.class_iou if decision.champion else {}
    rows = []
    for name in [*new, *(name for name in old if name not in new)]:
        ours, theirs = new.get(name), old.get(name)
        difference = None
        if decision.difference is not None and ours is not None and theirs is not None:
            difference = ours - theirs
        rows.append(
            {
                "name": name,
                "candidate": ours,
                "champion": theirs,
                "missing": {
                    "candidate": "absent" if name in new else "–",
                    "champion": "absent" if name in old else "–",
                },
                "difference": difference,
                "too_much": difference is not None and not _reaches(difference, -decision.rules["max_class_loss"]),
            }
        )
    return rows


def _axis(decision: Decision) -> dict[str, float] | None:
    """Where the interval is drawn: its ends, zero and what is asked, as shares of the axis from left to right."""
    if decision.difference is None or decision.interval is None:
        return None
    asked = decision.rules["min_gain"]
    shown = [0.0, decision.difference, *decision.interval]
    span = max(shown) - min(shown) or 0.01
    if min(shown) - span <= asked <= max(shown) + span:  # a rule far off would squeeze the rest
        shown.append(asked)
    left, right = min(shown) - 0.1 * span, max(shown) + 0.1 * span
    low, high = decision.interval
    marks = {"zero": 0.0, "low": low, "high": high, "difference": decision.difference, "asked": asked}
    return {name: (value - left) / (right - left) for name, value in marks.items()}
