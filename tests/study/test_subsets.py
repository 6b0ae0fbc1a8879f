import numpy as np
import pandas as pd
import pytest

from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.study.subsets import filling, labeling_order
from pspnet.study.training import Material, class_pixels
from pspnet.training.data import Rows


def frames(**sequences: int) -> pd.DataFrame:
    """A row for each frame of the sequences."""
    rows = [(f"{name}/{number:03}", name) for name, count in sequences.items() for number in range(count)]
    return pd.DataFrame(rows, columns=["id", "group"])


@pytest.mark.parametrize("seed", range(5))
def test_fewer_masks_are_among_more(material: Material, seed: int) -> None:
    small, large = (set(material.rows(count, seed, 1).train["id"]) for count in (3, 8))
    assert (len(small), len(large)) == (3, 8)
    assert small < large


def test_every_image_of_train_is_either_labeled_or_not(material: Material) -> None:
    rows, whole = material.rows(5, 0, 1), Rows.of(material.dataset)
    assert not set(rows.train["id"]) & set(rows.unlabeled["id"])
    assert {*rows.train["id"], *rows.unlabeled["id"]} == {*whole.train["id"], *whole.unlabeled["id"]}
    assert set(rows.train["split"]) == {"train"}
    assert set(rows.unlabeled["split"]) == {"train", "unlabeled"}


def test_with_every_image_labeled_the_same_images_are_used_without_masks(material: Material) -> None:
    everything = len(material.dataset.annotated("train"))
    assert len(material.rows(everything, 0, 1).unlabeled) == material.dataset.images["unlabeled"] > 0


def test_seeds_draw_different_masks() -> None:
    rows = frames(**{f"image{number}": 1 for number in range(200)})
    drawn = {tuple(labeling_order(rows, seed)["id"].head(5)) for seed in range(10)}
    assert len(drawn) == 10


def test_the_order_does_not_depend_on_the_order_of_the_index() -> None:
    rows = frames(a=9, b=4)
    assert labeling_order(rows.iloc[::-1], 3)["id"].tolist() == labeling_order(rows, 3)["id"].tolist()


@pytest.mark.parametrize("seed", range(5))
def test_masks_are_drawn_from_all_groups_in_turn(seed: int) -> None:
    order = labeling_order(frames(a=20, b=6, c=2), seed)["group"].tolist()
    assert sorted(order[:3]) == sorted(order[3:6]) == ["a", "b", "c"]
    assert sorted(order[6:8]) == ["a", "b"]


@pytest.mark.parametrize("seed", range(5))
def test_masks_of_a_sequence_are_spread_over_it(seed: int) -> None:
    chosen = np.sort(labeling_order(frames(a=64), seed)["id"].head(8).str[2:].astype(int))
    assert set(np.diff(chosen)) == {8}


def test_few_masks_are_repeated_to_fill_a_batch() -> None:
    assert filling(frames(a=3), 4)["id"].tolist() == ["a/000", "a/001", "a/002"] * 2
    assert len(filling(frames(a=4), 4)) == 4
    assert len(filling(frames(a=5), 4)) == 5


def test_class_weights_know_only_the_masks_of_the_run(material: Material) -> None:
    dataset: PreparedDataset = material.dataset
    train = dataset.annotated("train")
    assert class_pixels(dataset, train) == dataset.class_pixels["train"]
    assert sum(class_pixels(dataset, train.head(2))) == 2 * 96 * 128
