"""Which group goes to which split. A group is never on two sides, and data added elsewhere never moves it."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from pspnet.config.prepare import PrepareParams
from pspnet.dataset.problems import shortened
from pspnet.dataset.raw_samples import RawSample
from pspnet.dataset.samples import Split, stable_uniform
from pspnet.errors import Problem, UserError


def assign_splits(samples: Iterable[RawSample], prepare: PrepareParams) -> dict[str, Split]:
    """Group -> split: what the layout says, else `unlabeled` for a group without any mask, else by a hash of its name.

    An image without a mask goes where its group goes, so that pretraining never sees the scenes of val and test.
    """
    official: dict[str, dict[Split, str]] = defaultdict(dict)  # group -> split -> the first id that says so
    labelled: dict[str, bool] = defaultdict(bool)
    for sample in samples:
        labelled[sample.group] |= sample.mask is not None
        if sample.split and prepare.official_splits != "ignored":
            official[sample.group].setdefault(sample.split, sample.id)
    problems = []
    for group, splits in sorted(official.items()):
        if len(splits) > 1:
            found = "has two splits: " + ", ".join(f"{split} ({name})" for split, name in splits.items())
            fix = "Give all of the group one split, or name smaller groups (dataset.group_pattern)."
            problems.append(Problem(f"group '{group}'", found, "one", fix))
    if problems:
        raise UserError(shortened(problems))

    def split_of(group: str) -> Split:
        named = next(iter(official[group])) if group in official else None
        position = stable_uniform(f"{prepare.split_seed}\0{group}")
        if prepare.official_splits == "val_is_test":
            if named == "train":
                return "val" if position < prepare.val_share else "train"
            named = "test" if named == "val" else named
        if named:
            return named
        if not labelled[group]:
            return "unlabeled"
        if position < prepare.test_share:
            return "test"
        return "val" if position < prepare.test_share + prepare.val_share else "train"

    return {group: split_of(group) for group in sorted(labelled)}


def missing_masks(masks: Mapping[Split, int], groups: Mapping[Split, int]) -> list[Problem]:
    """Train, val and test each need a mask; `groups` counts the groups that have one."""
    needed: tuple[Split, ...] = ("train", "val", "test")
    if all(masks.get(split) for split in needed):
        return []
    found = ", ".join(f"{masks.get(split, 0):,} in {split} ({groups.get(split, 0):,} groups)" for split in needed)
    fix = (
        "Add masks for more groups, name smaller groups (dataset.group_pattern), write splits.csv, "
        "or change prepare.split_seed, prepare.val_share or prepare.test_share."
    )
    return [Problem("splits", f"masks: {found}", "at least one in each, and no group divided", fix)]
