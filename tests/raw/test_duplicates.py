import time

import numpy as np

from pspnet.raw.duplicates import RANK, contradictions, copies, hashes_of, look_alikes, really_alike, repeated
from pspnet.raw.images import GLANCE_PX
from tests.raw.rawdata import Pixels

TRAIN, VAL, TEST = RANK["train"], RANK["val"], RANK["test"]


def glances(count: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, GLANCE_PX, GLANCE_PX), np.uint8)


def alike(pictures: Pixels, ranks: list[int]) -> dict[int, int]:
    return really_alike(look_alikes(hashes_of(pictures), np.array(ranks)), dict(enumerate(pictures)))


def test_the_most_valuable_copy_is_kept_or_the_first_of_equals() -> None:
    digests = np.repeat(np.frombuffer(b"abacacb", np.uint8)[:, None], 32, axis=1)
    assert copies(digests, np.array([0, 0, 2, -1, 2, -1, 0])) == [(0, 2), (4, 2), (6, 1)]
    assert copies(digests[:0], np.array([], np.int64)) == []


def test_equal_images_with_different_masks_are_paired() -> None:
    images = np.repeat(np.frombuffer(b"abababcc", np.uint8)[:, None], 32, axis=1)
    masks = np.repeat(np.frombuffer(b"wxyxwxzw", np.uint8)[:, None], 32, axis=1)
    labeled = np.ones(8, bool)
    # Image a is at 0, 2 and 4 with masks w, y and w. Image b has mask x three times. Image c is at 6 and 7 with masks z
    # and w.
    assert contradictions(images, masks, labeled) == [(0, 2), (2, 0), (4, 2), (6, 7), (7, 6)]
    labeled[6] = False
    assert contradictions(images, masks, labeled) == [(0, 2), (2, 0), (4, 2)]
    assert contradictions(images[:0], masks[:0], labeled[:0]) == []


def test_a_slightly_changed_picture_in_a_different_split_is_found() -> None:
    pictures = glances(100)
    changed = np.clip(pictures[:1].astype(int) + np.random.default_rng(1).integers(-1, 2, pictures[:1].shape), 0, 255)
    every = np.concatenate([pictures, changed.astype(np.uint8)])
    assert alike(every, [TEST] + [TRAIN] * 100) == {100: 0}


def test_similar_pictures_in_one_split_or_in_train_and_unlabeled_do_not_leak() -> None:
    same = np.repeat(glances(1), 3, axis=0)
    assert alike(same, [TRAIN, TRAIN, RANK["unlabeled"]]) == {}
    assert alike(same, [TRAIN, VAL, TEST]) == {0: 1, 1: 2}


def test_pictures_that_look_alike_within_a_held_out_split_are_marked() -> None:
    pictures = glances(4)
    every = np.concatenate([pictures, pictures])
    assert repeated(hashes_of(every), np.array([TEST, VAL, TRAIN, TEST] * 2)).tolist() == [True, True, False, True] * 2
    assert not repeated(hashes_of(every), np.array([TEST, VAL, TRAIN, -1, VAL, TEST, TRAIN, -1])).any()


def test_flat_pictures_never_count_as_alike() -> None:
    assert alike(np.full((2, GLANCE_PX, GLANCE_PX), 200, np.uint8), [TRAIN, TEST]) == {}


def test_an_unused_picture_is_not_compared() -> None:
    assert alike(np.repeat(glances(1), 2, axis=0), [-1, TEST]) == {}


def test_different_pictures_with_equal_edges_are_not_alike() -> None:
    darker = np.concatenate([glances(1), glances(1) // 2])
    assert alike(darker, [TRAIN, TEST]) == {}


def test_the_time_is_linear_even_if_all_pictures_look_alike() -> None:
    seconds = []
    for count in (4_000, 16_000):
        ranks = np.array([TRAIN, TEST] * (count // 2))
        hashes = hashes_of(np.repeat(glances(1), count, axis=0))
        started = time.process_time()
        assert len(look_alikes(hashes, ranks)) >= count // 2
        seconds.append(time.process_time() - started)
    assert seconds[1] < 10 * seconds[0]  # there are four times the pictures; quadratic time would grow sixteenfold
