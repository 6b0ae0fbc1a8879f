"""Assign groups to splits. A group is never divided, and adding data never moves it unless `prepare.split_by` is
`stratified`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from pspnet.config.prepare import PrepareParams
from pspnet.dataset.store.splits import ANNOTATED, FIRST, Split, stable_uniform
from pspnet.errors import Problem
from pspnet.raw.problems import Verdict, counted, judge
from pspnet.raw.sample import RawSample

Shares = dict[Split, float]


def assign_splits(
    samples: Iterable[RawSample], prepare: PrepareParams, classes_in: Mapping[str, Counter[int]] | None = None
) -> tuple[dict[str, Split], list[Verdict]]:
    """Return the split of each group, and verdicts on groups with conflicting official splits.

    A group takes its official split. Without an official split, it takes `unlabeled` if it has no mask, and otherwise a
    split chosen by a hash of its name. With `classes_in` (group -> class -> number of images that show it), each split
    gets its share of each class instead.

    An image without a mask goes into its group's split, so that pretraining never sees the scenes of val and test.
    """
    official: dict[str, dict[Split, str]] = defaultdict(dict)  # group -> split -> the first id with that split
    labeled: dict[str, bool] = defaultdict(bool)
    for sample in samples:
        labeled[sample.group] |= sample.mask is not None
        if sample.split and prepare.official_splits != "ignored":
            official[sample.group].setdefault(sample.split, sample.id)
    verdicts = [judge(_torn(group, splits), prepare.problems, True) for group, splits in sorted(official.items())
            if len(splits) > 1]  # fmt: skip
    val_is_test = prepare.official_splits == "val_is_test"
    of_all: Shares = {
        "test": prepare.test_share, "val": prepare.val_share, "train": 1 - prepare.test_share - prepare.val_share,
    }  # fmt: skip
    of_train: Shares = {"val": prepare.val_share, "train": 1 - prepare.val_share}
    splits: dict[str, Split] = {}
    to_deal: list[tuple[Shares, list[str]]] = [(of_all, []), (of_train, [])]
    for group, has_masks in labeled.items():
        named = next((split for split in FIRST if split in official[group]), None) if group in official else None
        if named == "train" and val_is_test:
            to_deal[1][1].append(group)
        elif named:
            splits[group] = "test" if named == "val" and val_is_test else named
        elif has_masks:
            to_deal[0][1].append(group)
        else:
            splits[group] = "unlabeled"

    def position(group: str) -> float:
        return stable_uniform(f"{prepare.split_seed}\0{group}")

    for shares, groups in to_deal:
        if classes_in is None:
            splits |= ((group, _at(position(group), shares)) for group in groups)
        else:
            groups.sort(key=position)
            splits |= _stratified(groups, [classes_in.get(group, Counter()) for group in groups], shares)
    return splits, verdicts


def _torn(group: str, splits: Mapping[Split, str]) -> Problem:
    found = "has two splits: " + ", ".join(f"{split} ({name})" for split, name in splits.items())
    fix = (
        "Give the whole group one split, or name smaller groups (dataset.group_pattern), or put the whole group in "
        "the first of test, val and train (prepare.problems.contradicting_splits: fix)."
    )
    return Problem(f"group '{group}'", found, "one split", fix, "contradicting_splits")


def _at(position: float, shares: Shares) -> Split:
    """Return the split that a number in [0, 1) falls into when the shares are laid end to end."""
    end = 0.0
    for split, share in shares.items():
        end += share
        if position < end:
            return split
    return split


def _stratified(groups: Sequence[str], classes_in: Sequence[Counter[int]], shares: Shares) -> dict[str, Split]:
    """Split by iterative stratification. The rarest class is handled first: each group that shows it goes to the split
    that still lacks the most images of that class. Ties go to the split that lacks the most groups.
    """
    splits = list(shares)
    images = np.zeros((len(groups), 1 + max((k for own in classes_in for k in own), default=0) + 1))
    for row, own in zip(images, classes_in, strict=True):
        row[list(own)] = list(own.values())
        row[-1] = 1  # counts the group, so that groups are divided by the shares too
    lacking = np.outer(list(shares.values()), images.sum(axis=0))  # (splits, classes and the groups)
    left, dealt = set(range(len(groups))), {}
    while left:
        open_ = images[sorted(left)]
        shown = (open_ > 0).sum(axis=0)
        rarest = min(np.flatnonzero(shown), key=lambda k: (shown[k], k))
        showing = [place for place in sorted(left) if images[place, rarest]]
        for place in sorted(showing, key=lambda place: -images[place, rarest]):
            split = max(range(len(splits)), key=lambda s: (lacking[s, rarest], lacking[s, -1], -s))
            dealt[groups[place]] = splits[split]
            lacking[split] -= images[place]
            left.remove(place)
    return dealt


def chosen_masks(ids: Iterable[str], fraction: float) -> set[str]:
    """Return the ids that keep their masks, at least one. A smaller fraction gives a subset of a larger fraction."""
    ordered = sorted(ids, key=lambda name: (stable_uniform(f"labeled\0{name}"), name))
    return set(ordered[: max(1, round(fraction * len(ordered)))])


def missing_masks(labeled: Iterable[tuple[Split, str]]) -> list[Problem]:
    """Return a problem if train, val or test has no mask. `labeled` has the split and group of each image with a
    mask.
    """
    masks, groups = Counter[Split](), Counter[Split]()
    for (split, _), count in Counter(labeled).items():
        masks[split] += count
        groups[split] += 1
    if all(masks[split] for split in ANNOTATED):
        return []
    found = ", ".join(f"{masks[split]:,} in {split} ({counted(groups[split], 'group')})" for split in ANNOTATED)
    fix = (
        "Add masks for more groups, name smaller groups (dataset.group_pattern), write splits.csv, set "
        "prepare.split_by: stratified, or change prepare.split_seed, prepare.val_share or prepare.test_share."
    )
    return [Problem("splits", f"masks: {found}", "at least one in each split, with no group divided", fix)]
