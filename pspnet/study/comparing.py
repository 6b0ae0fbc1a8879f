"""Finished runs -> paired differences to scratch for the same compute, with 95% intervals over the seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pspnet.study.arms import SCRATCH, Family

# The 97.5% quantile of Student's t for 1, 2, ... degrees of freedom; beyond these, the normal quantile is close.
T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
NORMAL = 1.960
STILL_GAINS = 0.005  # mIoU that twice the steps must bring


@dataclass(frozen=True)
class Mean:
    """A mean over seeds and its 95% interval, which a single seed does not have."""

    value: float
    interval: tuple[float, float] | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        count, mean = len(values), float(np.mean(values))
        if count < 2:
            return cls(mean, None, count)
        t = T[count - 2] if count - 2 < len(T) else NORMAL
        half = t * float(np.std(values, ddof=1)) / math.sqrt(count)
        return cls(mean, (mean - half, mean + half), count)

    @property
    def is_above_zero(self) -> bool:
        return self.interval is not None and self.interval[0] > 0

    @property
    def is_below_zero(self) -> bool:
        return self.interval is not None and self.interval[1] < 0


@dataclass(frozen=True)
class Comparison:
    """An arm beside scratch for the same compute, over the seeds for which both are finished."""

    arm: str
    family: Family
    mean_iou: Mean
    scratch: Mean
    gain: Mean
    val_gain: float  # on val: chooses the best arm
    cost: float  # FLOPs as a multiple of scratch's
    time: float | None  # the same in seconds, from pairs on one machine

    @property
    def verdict(self) -> str:
        if self.gain.interval is None:
            return "one seed: no interval"
        return "gain" if self.gain.is_above_zero else "loss" if self.gain.is_below_zero else "no measurable gain"


@dataclass(frozen=True)
class Longer:
    """What more steps bring to scratch."""

    times: float  # the steps, as a multiple
    mean_iou: Mean
    gain: Mean

    @property
    def gain_per_doubling(self) -> float:
        return self.gain.value / math.log2(self.times)

    @property
    def still_gains(self) -> bool:
        return self.gain_per_doubling >= STILL_GAINS


@dataclass(frozen=True)
class Chapter:
    """All that is known about one number of masks and steps."""

    steps: int
    masks: int
    scratch: Mean
    longer: tuple[Longer, ...]  # by steps
    comparisons: tuple[Comparison, ...]  # in the order of the arms

    @property
    def doubling(self) -> Longer | None:
        """Scratch with about twice the steps, or what comes closest."""
        return min(self.longer, key=lambda one: abs(math.log2(one.times) - 1), default=None)

    @property
    def best(self) -> Comparison | None:
        """Among the arms with a gain, the one that gains most on val."""
        gaining = [one for one in self.comparisons if one.gain.is_above_zero and one.family != "control"]
        return max(gaining, key=lambda one: one.val_gain, default=None)


def chapters(rows: pd.DataFrame, arms: Sequence[tuple[str, Family]], steps: Sequence[int]) -> list[Chapter]:
    """Return a chapter for each number of steps, the largest first, and of masks."""
    if rows.empty:
        return []
    found = [
        _chapter(rows[rows["masks"] == masks], arms, count, int(masks))
        for count in sorted(steps, reverse=True)
        for masks in sorted(rows["masks"].unique())
    ]
    return [chapter for chapter in found if chapter is not None]


def _chapter(rows: pd.DataFrame, arms: Sequence[tuple[str, Family]], steps: int, masks: int) -> Chapter | None:
    plain = rows[rows["arm"] == SCRATCH].set_index("seed")
    base = plain[plain["steps"] == steps]
    if base.empty:
        return None
    others = rows[(rows["arm"] != SCRATCH) & (rows["steps"] == steps)]
    longer = []
    for count in sorted(count for count in plain["steps"].unique() if count > steps):
        own, before = _pairs(plain[plain["steps"] == count], base)
        if len(own):
            gain = Mean.of((own["test_mean_iou"] - before["test_mean_iou"]).tolist())
            longer.append(Longer(count / steps, Mean.of(own["test_mean_iou"].tolist()), gain))
    comparisons = []
    for arm, family in arms:
        own = others[others["arm"] == arm].set_index("seed")
        equal = plain[plain["steps"] == own["equal_steps"].iloc[0]] if len(own) else base.head(0)
        own, scratch = _pairs(own, equal)
        if len(own):
            comparisons.append(_comparison(arm, family, own, scratch, base))
    return Chapter(steps, masks, Mean.of(base["test_mean_iou"].tolist()), tuple(longer), tuple(comparisons))


def _pairs(one: pd.DataFrame, other: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows of the seeds that both have."""
    seeds = one.index.intersection(other.index).sort_values()
    return one.loc[seeds], other.loc[seeds]


def _comparison(arm: str, family: Family, own: pd.DataFrame, scratch: pd.DataFrame, base: pd.DataFrame) -> Comparison:
    differences = own["test_mean_iou"] - scratch["test_mean_iou"]
    here, there = _pairs(own, base)
    seconds = pd.DataFrame({"arm": here["seconds"] + here["pretraining_seconds"], "scratch": there["seconds"]})
    seconds = seconds[here["host"] == there["host"]].dropna().sum()
    return Comparison(
        arm,
        family,
        Mean.of(own["test_mean_iou"].tolist()),
        Mean.of(scratch["test_mean_iou"].tolist()),
        Mean.of(differences.tolist()),
        float((own["val_mean_iou"] - scratch["val_mean_iou"]).mean()),
        float(own["flops"].mean() / base["flops"].mean()),
        float(seconds["arm"] / seconds["scratch"]) if seconds["scratch"] else None,
    )
