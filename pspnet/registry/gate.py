"""The gate: takes two reports and the rules, and returns a decision with reasons. It is a pure function.

refused   a rule that cannot be overruled is broken
held      rules are broken, but a person can overrule all of them (`forced`)
passed    the candidate may become the champion
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from pspnet.config.promotion import PromotionParams
from pspnet.evaluation.report import EvaluationReport
from pspnet.registry.bootstrap import Interval, paired_bootstrap

Outcome = Literal["passed", "refused", "held"]
MAY_BE_FORCED = {"not rolled back", "same classes"}
ROUNDING = 1e-12  # 0.8 - 0.7 is less than 0.1 by 1e-16, so values that miss a limit by less than this pass


@dataclass(frozen=True)
class Reason:
    rule: str
    passed: bool
    text: str


@dataclass(frozen=True)
class Side:
    bundle: str  # digest of the bundle
    version: int | None
    mean_iou: float | None  # None if no class has an IoU
    class_iou: dict[str, float | None]  # None if the class is absent
    images: int


@dataclass(frozen=True)
class Decision:
    outcome: Outcome
    reasons: tuple[Reason, ...]  # one for each rule that was checked, in a fixed order
    candidate: Side
    champion: Side | None
    fingerprint: str  # identifies the test split
    difference: float | None  # candidate - champion, in mean IoU; None if the two cannot be compared
    interval: Interval | None  # the 95% confidence interval of the difference
    rules: dict[str, Any]
    earlier_decisions: int  # number of earlier decisions based on this test split
    forced: bool

    @property
    def digest(self) -> str:
        """A digest that is equal for decisions with the same grounds, whatever the version numbers and the time."""
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
        text = f"mIoU {score(self.candidate.mean_iou)}, "
        if self.champion is None:
            text += "and there is no champion to compare with"
        elif self.difference is None or self.interval is None:
            text += f"not comparable with the champion's {score(self.champion.mean_iou)}"
        else:
            gain = f"{abs(self.difference):.3f} {'below' if self.difference < 0 else 'above'}"
            gain = "level with" if abs(self.difference) <= ROUNDING else gain
            low, high = self.interval
            text += f"{gain} the champion's {score(self.champion.mean_iou)} (95% interval {low:z.3f} to {high:z.3f})"
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
    """Return the decision on a candidate.

    `predicts_the_same` is None, or describes how the registered version differs from its bundle. `withdrawn` is None,
    or describes how the version was rolled back. The caller first evaluates the champion on the candidate's test split.
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


def _loads_and_predicts(difference: str | None) -> Reason:
    text = "the registered version loads and predicts what the bundle predicted"
    if difference is not None:
        text = f"the registered version does not predict what the bundle predicts: {difference}"
    return Reason("loads and predicts", difference is None, text)


def _not_rolled_back(withdrawn: str | None) -> Reason:
    text = "this version was never rolled back" if withdrawn is None else withdrawn
    return Reason("not rolled back", withdrawn is None, text)


def _floor(candidate: EvaluationReport, rules: PromotionParams) -> Reason:
    required = f"at least {_limit(rules.min_mean_iou)} is required"
    if math.isnan(candidate.mean_iou):
        return Reason("floor", False, f"no test mIoU: no pixel in the test split is labeled; {required}")
    text = f"test mIoU {_beside(candidate.mean_iou, rules.min_mean_iou)}, {required}"
    return Reason("floor", reaches(candidate.mean_iou, rules.min_mean_iou), text)


def _comparable(candidate: EvaluationReport, champion: EvaluationReport) -> Iterator[Reason]:
    """Yield reasons up to the first failure. Classes come first, because different classes change the fingerprint."""
    for check in (_not_the_champion, _same_classes, _same_test_split):
        yield (reason := check(candidate, champion))
        if not reason.passed:
            return


def _not_the_champion(candidate: EvaluationReport, champion: EvaluationReport) -> Reason:
    same = candidate.bundle == champion.bundle
    return Reason("not the champion", not same, "is already the champion" if same else "is another bundle")


def _same_classes(candidate: EvaluationReport, champion: EvaluationReport) -> Reason:
    if candidate.classes == champion.classes:
        return Reason("same classes", True, f"the {len(candidate.classes)} classes are the champion's")
    new = [name for name in candidate.classes if name not in champion.classes]
    gone = [name for name in champion.classes if name not in candidate.classes]
    changes = [f"{word} {', '.join(names)}" for word, names in (("new", new), ("gone", gone)) if names]
    found = "; ".join(changes) or "the same names in a different order"
    text = f"the classes are not the champion's ({found}): gain, its interval and loss by class were not computed"
    return Reason("same classes", False, text)


def _same_test_split(candidate: EvaluationReport, champion: EvaluationReport) -> Reason:
    ours, theirs = candidate.fingerprint, champion.fingerprint
    text = f"both were evaluated on the test split {ours[:12]}"
    if ours != theirs:
        text = (
            f"evaluated on the test split {ours[:12]}, the champion on {theirs[:12]}: not comparable until the "
            "champion is also evaluated on this split"
        )
    return Reason("same test split", ours == theirs, text)


def _gain(
    candidate: EvaluationReport,
    champion: EvaluationReport,
    difference: float | None,
    interval: Interval | None,
    rules: PromotionParams,
) -> Reason:
    minimum = _limit(rules.min_gain)
    if difference is None or interval is None:
        who = "candidate" if math.isnan(candidate.mean_iou) else "champion"
        return Reason("gain", False, f"no gain: the {who} has no test mIoU; at least {minimum} is required")
    low, high = interval
    by_difference = rules.gain_measured_by == "difference"
    groups = candidate.images["group"].nunique()
    text = (
        f"gain {_beside(difference, rules.min_gain) if by_difference else f'{difference:z.3f}'} "
        f"({champion.mean_iou:.3f} → {candidate.mean_iou:.3f}), "
        f"95% interval {f'{low:z.3f}' if by_difference else _beside(low, rules.min_gain)} to {high:z.3f} "
        f"from {f'{groups:,} groups' if groups > 1 else '1 group, which shows no spread'}; "
        f"at least {minimum} is required{'' if by_difference else ' of its lower end'}"
    )
    return Reason("gain", reaches(difference if by_difference else low, rules.min_gain), text)


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
    too_much = [text for loss, text in losses if not reaches(-loss, -limit)]
    parts = [f"no class may lose more than {_limit(limit)} IoU"]
    if too_much:
        parts[0] += ": " + ", ".join(too_much)
    elif losses and losses[0][0] > ROUNDING:
        parts[0] += f", and {losses[0][1]} the most" if len(losses) > 1 else f", and {losses[0][1]}"
    elif losses:
        parts[0] += ", and no class loses any"
    if absent:
        parts.append("not compared: " + ", ".join(absent))
    return Reason("class loss", not too_much, "; ".join(parts))


def _forced(outcome: Outcome, broken: list[str]) -> Reason:
    if outcome == "refused":
        return Reason("forced", False, "a person forced it, but only a held version can be forced")
    if broken:
        return Reason("forced", True, f"a person forced it past: {', '.join(broken)}")
    return Reason("forced", True, "a person forced it, although no rule was broken")


def _side(report: EvaluationReport, version: int | None) -> Side:
    ious = [None if math.isnan(value) else float(value) for value in (report.mean_iou, *report.class_iou)]
    return Side(report.bundle, version, ious[0], dict(zip(report.classes, ious[1:], strict=True)), len(report.images))


def reaches(value: float, limit: float) -> bool:
    return value >= limit - ROUNDING


def _limit(limit: float) -> str:
    return text if float(text := f"{limit:.3f}") == limit else repr(limit)


def _beside(value: float, limit: float) -> str:
    """Format a value with at least three digits, and with more if needed to distinguish it from the limit."""
    if abs(value - limit) <= ROUNDING:
        return _limit(limit)
    texts = (f"{value:.{digits}f}" for digits in range(3, 14))
    return next((text for text in texts if (float(text) - limit) * (value - limit) > 0), repr(value))


def score(value: float | None, missing: str = "–") -> str:
    return missing if value is None else f"{value:.3f}"
