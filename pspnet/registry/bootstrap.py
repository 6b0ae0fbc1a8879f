"""The paired bootstrap: how much the difference in mean IoU between two models depends on the choice of test images."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pspnet.metrics import iou, mean_over_classes

Interval = tuple[float, float]
CONFIDENCE = 0.95
DRAWN_AT_ONCE = 2**21  # random numbers; they take 16 MB, regardless of the number of groups


def paired_bootstrap(
    candidate_images: pd.DataFrame,
    champion_images: pd.DataFrame,
    classes: Sequence[str],
    resamples: int,
    seed: int = 0,
) -> tuple[float, Interval]:
    """Return the difference in mean IoU, candidate - champion, and its 95% percentile interval.

    Groups, not images, are drawn with replacement, because errors on images of the same scene are correlated. Both
    models get the same groups, because a scene that is hard for one is hard for both. The IoUs of a draw are computed
    from the summed pixel counts of its groups.
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
        # Floats are faster. They contain whole numbers far below 2**53, so the order of addition changes nothing.
        totals = times.astype(np.float64) @ sums.reshape(groups, -1)
        drawn.append(_difference(totals.reshape(count, *sums.shape[1:])))
    differences = np.concatenate(drawn)
    differences = differences[~np.isnan(differences)]  # NaN for draws without a labeled pixel
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(differences, (tail, 1 - tail))
    return float(_difference(sums.sum(axis=0))), (float(low), float(high))


def _sums_of_groups(
    candidate_images: pd.DataFrame, champion_images: pd.DataFrame, classes: Sequence[str]
) -> NDArray[np.float64]:
    """Return a (G, 4, K) array: each group's intersection and union for the candidate, then for the champion."""
    candidate, champion = (images.set_index("id").sort_index() for images in (candidate_images, champion_images))
    if not candidate.index.is_unique or not candidate.index.equals(champion.index):
        raise ValueError("the two reports do not cover the same images")
    columns = [f"{count}_{name}" for count in ("intersection", "union") for name in classes]
    pixels = np.hstack([images[columns].to_numpy(np.float64) for images in (candidate, champion)])
    # Use the candidate's groups for both models, because images may have been grouped differently when the champion was
    # evaluated.
    _, group = np.unique(candidate["group"].to_numpy(str), return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    return np.add.reduceat(pixels[order], starts, axis=0).reshape(len(starts), 4, len(classes))


def _difference(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean IoU of the candidate minus that of the champion: (..., 4, K) -> (...)."""
    candidate, champion = (mean_over_classes(iou(sums[..., at, :], sums[..., at + 1, :])) for at in (0, 2))
    return candidate - champion
