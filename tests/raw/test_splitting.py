from collections import Counter
from typing import Any

import pytest

from pspnet.dataset.store.splits import SPLITS, Split, stable_uniform
from pspnet.raw.masks import Numbers
from pspnet.raw.sample import RawSample
from pspnet.raw.splitting import assign_splits, chosen_masks, missing_masks
from tests.raw.rawdata import prepare_params


def sample(name: str, group: str, labeled: bool = True, split: Split | None = None) -> RawSample:
    return RawSample(name, f"images/{name}.png", Numbers(f"masks/{name}.png") if labeled else None, group, split)


def assign(samples: list[RawSample], seed: int = 0, official: str = "kept") -> dict[str, Split]:
    changes = {"split_seed": seed, "val_share": 0.2, "test_share": 0.3, "official_splits": official}
    splits, verdicts = assign_splits(samples, prepare_params(**changes))
    assert not verdicts
    return splits


SCENES = [sample(f"{scene}/{frame}", f"scene{scene}") for scene in range(400) for frame in range(2)]


def test_the_stable_hash_never_changes() -> None:
    # sha256("a") = ca978112ca1b...
    assert stable_uniform("a") == 0xCA978112CA1B / 2**48


def test_the_hash_of_seed_and_group_decides_the_split() -> None:
    for group, split in assign(SCENES).items():
        position = stable_uniform(f"0\0{group}")
        assert split == ("test" if position < 0.3 else "val" if position < 0.5 else "train")


def test_shares_are_close_to_the_requested_ones() -> None:
    splits = list(assign(SCENES).values())
    assert splits.count("test") == pytest.approx(120, abs=30)
    assert splits.count("val") == pytest.approx(80, abs=25)


def test_adding_data_moves_no_group() -> None:
    before = assign(SCENES[:300])
    after = assign([*SCENES, *(sample(f"new/{n}", f"new{n}") for n in range(50))])
    assert {group: after[group] for group in before} == before


def test_a_different_seed_splits_differently() -> None:
    assert assign(SCENES, seed=1) != assign(SCENES)


def test_a_group_without_masks_is_unlabeled() -> None:
    assert assign([sample("x", "x", labeled=False)]) == {"x": "unlabeled"}


def test_an_image_without_a_mask_stays_in_its_group() -> None:
    held_out = next(group for group, split in assign(SCENES).items() if split == "test")
    assert assign([sample("x", held_out, labeled=False), sample("y", held_out)]) == {held_out: "test"}


def test_an_official_split_overrides_the_hash_and_missing_masks() -> None:
    splits: list[Split] = ["train", "val", "test", "unlabeled"]
    official = [sample(f"{split}{n}", f"{split}{n}", n % 2 == 0, split) for split in splits for n in range(20)]
    assert all(group.startswith(split) for group, split in assign(official).items())


def test_if_official_val_becomes_test_val_is_taken_from_train() -> None:
    official = [sample(f"{split}{n}", f"{split}{n}", split=split) for split in SPLITS for n in range(100)]
    found = assign([*official, *SCENES], official="val_is_test")
    taken = [found[f"train{n}"] for n in range(100)]
    assert set(taken) == {"train", "val"} and taken.count("val") == pytest.approx(20, abs=12)
    for split, becomes in (("val", "test"), ("test", "test"), ("unlabeled", "unlabeled")):
        assert {found[f"{split}{n}"] for n in range(100)} == {becomes}
    assert {group: split for group, split in found.items() if group.startswith("scene")} == assign(SCENES)


def test_official_splits_can_be_ignored() -> None:
    torn = [sample(f"{one.id} {number}", one.group, split="val") for number, one in enumerate(SCENES)]
    assert assign(torn, official="ignored") == assign(SCENES)
    assert set(assign(torn).values()) == {"val"}


def test_an_official_split_of_one_image_applies_to_its_group() -> None:
    assert assign([sample("a", "g"), sample("b", "g", split="val"), sample("c", "g")]) == {"g": "val"}


def test_every_group_in_two_official_splits_is_reported() -> None:
    torn = [sample(f"{g}{s}", g, split=s) for g in ("one", "two") for s in ("train", "test")]
    _, verdicts = assign_splits(torn, prepare_params())
    assert [(one.problem.where, one.outcome) for one in verdicts] == [
        ("group 'one'", "error"),
        ("group 'two'", "error"),
    ]
    assert verdicts[0].problem.found == "has two splits: train (onetrain), test (onetest)"
    mended, verdicts = assign_splits(torn, prepare_params(problems__contradicting_splits="fix"))
    assert mended == {"one": "test", "two": "test"}
    assert {one.outcome for one in verdicts} == {"fixed"}


def showing(*classes: int) -> Counter[int]:
    return Counter(classes)


def stratified(classes_in: dict[str, Counter[int]], **changes: Any) -> dict[str, Split]:
    samples = [sample(group, group) for group in classes_in]
    splits, _ = assign_splits(samples, prepare_params(val_share=0.25, test_share=0.25, **changes), classes_in)
    return splits


def test_stratified_splits_spread_a_rare_class() -> None:
    classes_in = {f"g{n}": showing(0, 1) if n < 4 else showing(0) for n in range(40)}
    for seed in range(20):
        splits = stratified(classes_in, split_seed=seed)
        assert sorted(splits[f"g{n}"] for n in range(4)) == ["test", "train", "train", "val"]
        assert Counter(splits.values()) == {"train": 20, "val": 10, "test": 10}


def test_stratified_splits_of_four_groups_all_have_masks() -> None:
    for seed in range(20):
        splits = stratified({name: showing(0, 1) for name in "abcd"}, split_seed=seed)
        assert sorted(splits.values()) == ["test", "train", "train", "val"]


def test_stratified_splits_count_the_images_in_a_group() -> None:
    splits = stratified({"film": Counter({0: 50}), **{f"g{n}": showing(0) for n in range(50)}})
    assert splits["film"] == "train"
    assert Counter(splits[f"g{n}"] for n in range(50))["train"] < 15


def test_a_smaller_labeled_fraction_is_a_subset_of_a_larger_one() -> None:
    ids = [f"{number}" for number in range(1000)]
    sixteenth, eighth, quarter = (chosen_masks(ids, fraction) for fraction in (1 / 16, 1 / 8, 1 / 4))
    assert sixteenth < eighth < quarter
    assert [len(chosen) for chosen in (sixteenth, eighth, quarter)] == [62, 125, 250]
    assert chosen_masks(reversed(ids), 1 / 8) == eighth
    assert len(chosen_masks(ids[:3], 0.01)) == 1


def test_splits_without_masks_are_reported_with_counts() -> None:
    labeled: list[tuple[Split, str]] = [("train", "a"), ("train", "a"), ("train", "b"), ("test", "c")]
    assert missing_masks([*labeled, ("val", "d")]) == []
    [problem] = missing_masks(labeled)
    assert problem.found == "masks: 3 in train (2 groups), 0 in val (0 groups), 1 in test (1 group)"


def test_the_order_of_images_in_a_group_does_not_matter() -> None:
    images = [sample("masked", "scene"), sample("bare", "scene", labeled=False)]
    assert assign(images) == assign(images[::-1]) != {"scene": "unlabeled"}
