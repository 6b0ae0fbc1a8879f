"""Statistics on numbers that were worked out by hand."""

import math

import pandas as pd
import pytest
from scipy.stats import t as student

from pspnet.study.arms import Family
from pspnet.study.comparing import NORMAL, Chapter, Longer, Mean, T, chapters

ARMS: tuple[tuple[str, Family], ...] = (
    ("scratch", "scratch"),
    ("masked", "pretraining"),
    ("mean_teacher", "semi-supervised training"),
)
SCRATCH = {100: [0.60, 0.62, 0.64], 200: [0.61, 0.63, 0.65]}


def row(arm: str, steps: int, seed: int, iou: float, equal: int, **others: object) -> dict[str, object]:
    return {
        "arm": arm, "masks": 57, "seed": seed, "steps": steps, "equal_steps": equal, "test_mean_iou": iou,
        "val_mean_iou": iou, "flops": float(equal), "seconds": float(equal), "pretraining_seconds": 0.0, "host": "one",
        **others,
    }  # fmt: skip


def rows(**arms: list[float]) -> pd.DataFrame:
    """Scratch with 100 and 200 steps, and arms that take 100 steps and compute as much as 200."""
    found = [row("scratch", steps, s, iou, steps) for steps, ious in SCRATCH.items() for s, iou in enumerate(ious)]
    found += [row(arm, 100, s, iou, 200) for arm, ious in arms.items() for s, iou in enumerate(ious)]
    return pd.DataFrame(found)


def chapter(table: pd.DataFrame) -> Chapter:
    (found,) = chapters(table, ARMS, [100])
    return found


def test_the_interval_of_three_differences() -> None:
    # mean 0.05; sd 0.01; t(2) = 4.303; 4.303 * 0.01 / sqrt(3) = 0.024843
    mean = Mean.of([0.04, 0.05, 0.06])
    assert mean.value == pytest.approx(0.05)
    assert mean.interval == pytest.approx((0.025157, 0.074843), abs=1e-6)
    assert mean.is_above_zero
    assert not mean.is_below_zero


def test_one_seed_has_no_interval() -> None:
    mean = Mean.of([0.3])
    assert (mean.value, mean.interval) == (0.3, None)
    assert not mean.is_above_zero


def test_the_quantiles_are_students() -> None:
    assert pytest.approx([student.ppf(0.975, freedom) for freedom in range(1, len(T) + 1)], abs=1e-3) == T
    assert pytest.approx(student.ppf(0.975, math.inf), abs=1e-3) == NORMAL


def test_an_arm_is_compared_with_scratch_of_the_same_compute_seed_by_seed() -> None:
    (one,) = chapter(rows(masked=[0.66, 0.68, 0.70])).comparisons
    assert one.gain.value == pytest.approx(0.05)
    assert one.gain.interval == pytest.approx((0.05, 0.05))  # the seeds differ, but their differences do not
    assert one.scratch.value == pytest.approx(0.63)
    assert one.cost == one.time == pytest.approx(2.0)
    assert one.verdict == "gain"


def test_only_seeds_that_both_have_finished_count() -> None:
    table = rows(masked=[0.66, 0.68, 0.70])
    unfinished = table[~((table["arm"] == "scratch") & (table["steps"] == 200) & (table["seed"] == 1))]
    (one,) = chapter(unfinished).comparisons
    assert one.gain.count == 2
    assert [one.scratch.value, one.mean_iou.value] == pytest.approx([0.63, 0.68])


def test_an_interval_around_zero_is_no_measurable_gain() -> None:
    (one,) = chapter(rows(masked=[0.60, 0.64, 0.66])).comparisons
    assert one.gain.value == pytest.approx(0.003333, abs=1e-6)
    assert one.verdict == "no measurable gain"
    assert chapter(rows(masked=[0.56, 0.58, 0.60])).comparisons[0].verdict == "loss"
    assert chapter(rows(masked=[0.9])).comparisons[0].verdict == "one seed: no interval"


def test_val_chooses_the_best_arm_and_test_does_not() -> None:
    table = rows(masked=[0.66, 0.68, 0.70], mean_teacher=[0.70, 0.72, 0.74])
    assert getattr(chapter(table).best, "arm", None) == "mean_teacher"
    table.loc[table["arm"] == "masked", "val_mean_iou"] = 0.9
    assert getattr(chapter(table).best, "arm", None) == "masked"


def test_times_are_compared_on_one_machine_only() -> None:
    table = rows(masked=[0.66, 0.68, 0.70])
    table.loc[(table["arm"] == "masked") & (table["seed"] == 0), ["host", "seconds"]] = ["another", 900.0]
    assert chapter(table).comparisons[0].time == pytest.approx(2.0)
    table.loc[table["arm"] == "masked", "host"] = "another"
    assert chapter(table).comparisons[0].time is None


def test_scratch_has_stopped_gaining_if_twice_the_steps_bring_little() -> None:
    own = chapter(rows(masked=[0.66, 0.68, 0.70]))
    (longer,) = own.longer
    assert [longer.times, longer.gain.value] == pytest.approx([2.0, 0.01])
    assert longer.still_gains
    assert own.doubling is longer
    flat = Longer(4.0, Mean.of([0.64, 0.64]), Mean.of([0.009, 0.009]))
    assert flat.gain_per_doubling == pytest.approx(0.0045)
    assert not flat.still_gains


def test_twice_the_steps_are_judged_by_the_run_that_comes_closest() -> None:
    table = pd.concat([rows(), pd.DataFrame([row("scratch", steps, 0, 0.9, steps) for steps in (110, 190, 800)])])
    own = chapter(table)
    assert [one.times for one in own.longer] == [1.1, 1.9, 2.0, 8.0]
    assert own.doubling is own.longer[2]
    one_only = Chapter(100, 57, Mean.of([0.6]), (), ())
    assert one_only.doubling is None
