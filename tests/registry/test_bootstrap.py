import tracemalloc

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.stats import bootstrap

from pspnet.registry import bootstrap as module
from pspnet.registry.bootstrap import paired_bootstrap
from tests.registry.reports import CLASSES, NOTHING, found, report


def scenes(seed: int, groups: int, classes: int) -> tuple[pd.DataFrame, pd.DataFrame, list[str], NDArray[np.int64]]:
    """Return two models' images from scenes that are easy or hard for both, and the pixels summed
    by group: (G, 4, K).
    """
    rng = np.random.default_rng(seed)
    names = [f"class{k}" for k in range(classes)]
    group = rng.permutation(np.concatenate([np.arange(groups), rng.integers(0, groups, 2 * groups)]))
    ease = rng.uniform(0.2, 0.95, groups)[group]
    union = rng.integers(50, 2000, (2, len(group), classes)) * (rng.random((2, len(group), classes)) < 0.8)
    share = np.clip(ease[:, None] + rng.normal([[[0.02]], [[0.0]]], 0.05, union.shape), 0, 1)
    intersection = (union * share).astype(np.int64)
    frames = [
        pd.DataFrame(
            {"id": [f"image{i}" for i in range(len(group))], "group": [f"scene{g}" for g in group]}
            | {f"intersection_{name}": intersection[m, :, k] for k, name in enumerate(names)}
            | {f"union_{name}": union[m, :, k] for k, name in enumerate(names)}
        )
        for m in (0, 1)
    ]
    sums = np.zeros((groups, 4, classes), np.int64)
    for m in (0, 1):
        np.add.at(sums[:, 2 * m], group, intersection[m])
        np.add.at(sums[:, 2 * m + 1], group, union[m])
    return frames[0], frames[1], names, sums


def scipys_interval(sums: NDArray[np.int64], paired: bool, seed: int) -> NDArray[np.float64]:
    """Return SciPy's interval. SciPy resamples the groups, and the statistic is computed here."""

    def mean_iou(model: int, drawn: NDArray[np.int64]) -> NDArray[np.float64]:
        totals = sums[drawn, 2 * model : 2 * model + 2].sum(axis=-3).astype(float)
        means: NDArray[np.float64] = np.nanmean(totals[..., 0, :] / totals[..., 1, :], axis=-1)
        return means

    def gain(ours: NDArray[np.int64], theirs: NDArray[np.int64], axis: int) -> NDArray[np.float64]:
        assert axis in (-1, ours.ndim - 1)
        return mean_iou(0, ours) - mean_iou(1, theirs)

    numbers = np.arange(len(sums))
    found = bootstrap(
        (numbers, numbers), gain, paired=paired, vectorized=True, method="percentile", n_resamples=4000, batch=200,
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    return np.array(found.confidence_interval)


@pytest.mark.parametrize(("groups", "classes"), [(12, 3), (40, 6), (150, 2)])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_interval_equals_scipys(groups: int, classes: int, seed: int) -> None:
    candidate, champion, names, sums = scenes(seed, groups, classes)
    difference, interval = paired_bootstrap(candidate, champion, names, resamples=4000, seed=seed)
    by_hand = [np.nanmean(sums[:, at].sum(axis=0) / sums[:, at + 1].sum(axis=0)) for at in (0, 2)]
    assert difference == pytest.approx(by_hand[0] - by_hand[1], abs=1e-12)
    # The 2.5% quantile of n normal draws has a standard error of sqrt(0.025 * 0.975 / n) / 0.058 standard deviations:
    # 0.042 for n = 4000, and 0.06 for the difference of two such quantiles. The interval is 3.92 wide. This is five
    # standard errors:
    noise = 5 * 0.06 / 3.92 * (interval[1] - interval[0])
    assert interval == pytest.approx(scipys_interval(sums, True, seed), abs=noise)
    assert interval != pytest.approx(scipys_interval(sums, False, seed), abs=noise)


def test_the_interval_does_not_depend_on_the_order_of_images_or_on_how_many_are_drawn_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    candidate, champion, names, _ = scenes(0, 30, 3)
    first = paired_bootstrap(candidate, champion, names, 500)
    shuffled = champion.sample(frac=1, random_state=0, ignore_index=True)
    assert paired_bootstrap(candidate[::-1], shuffled, names, 500) == first
    monkeypatch.setattr(module, "DRAWN_AT_ONCE", 30 * 7)
    assert paired_bootstrap(candidate, champion, names, 500) == first
    assert paired_bootstrap(candidate, champion, names, 500, seed=1) != first


def test_a_class_absent_from_a_draw_is_left_out_of_its_mean() -> None:
    # One image of a train and one of a road, with every pixel correct.
    candidate = report(np.diag([0, 0, 0, 0, 10]), np.diag([10, 0, 0, 0, 0]))
    train_as_car, road_as_car = np.zeros((2, 5, 5), np.int64)
    train_as_car[4, 1] = road_as_car[0, 1] = 10
    champion = report(train_as_car, road_as_car, bundle="b")
    difference, (low, high) = paired_bootstrap(candidate.images, champion.images, CLASSES, 1000)
    # Whether a draw has only the train, only the road or both, the candidate's mean is 1 and the champion's is 0.
    assert (difference, low, high) == (1, 1, 1)


def test_draws_without_labeled_pixels_are_left_out() -> None:
    candidate, champion = (report(found(a), NOTHING, bundle=str(a)) for a in (90, 80))
    difference, (low, high) = paired_bootstrap(candidate.images, champion.images, CLASSES, 100)
    assert (difference, low, high) == pytest.approx((0.1, 0.1, 0.1))


def test_the_groups_are_those_of_the_candidate() -> None:
    """An older report on the same split may use different names for its groups."""
    candidate, champion, names, _ = scenes(0, 20, 3)
    first = paired_bootstrap(candidate, champion, names, 200)
    assert paired_bootstrap(candidate, champion.assign(group="all"), names, 200) == first


def test_reports_on_different_images_are_a_bug() -> None:
    candidate, champion, names, _ = scenes(0, 10, 3)
    for other in (champion[1:], champion.replace({"id": {"image0": "image99"}}), pd.concat([champion, champion[:1]])):
        with pytest.raises(ValueError, match="do not cover the same images"):
            paired_bootstrap(candidate, other, names, 200)
    twice = pd.concat([candidate, candidate[:1]])
    with pytest.raises(ValueError, match="do not cover the same images"):
        paired_bootstrap(twice, twice, names, 200)


def test_a_hundred_thousand_groups_need_little_memory() -> None:
    candidate, champion, names, _ = scenes(0, 100_000, 2)
    tracemalloc.start()
    try:
        paired_bootstrap(candidate, champion, names, 100)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200e6  # all draws at once would take three times 100 x 100,000 x 8 bytes, plus the tables
