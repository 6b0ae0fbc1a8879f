import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pspnet.checkout.difference import Changes, ClassPixels, Difference, Move, compare
from pspnet.dataset.store.pixels import encode_mask
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.dataset.store.shards import Record, ShardWriter, digests
from pspnet.dataset.store.splits import SPLITS, Split
from pspnet.demo.streets import synthesize
from pspnet.errors import Problem
from pspnet.raw.problems import Outcome, Verdict, write_problems
from pspnet.stages import prepare
from pspnet.tracking.run import StageRun
from tests.parameters import demo_params
from tests.training.conftest import quiet

Sample = tuple[Split, bytes, list[int] | None]  # the mask is a single row of pixels
AB = ("a", "b")


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the facts of a set prepared by `prepare`."""
    folder = tmp_path_factory.mktemp("facts")
    synthesize(folder / "raw", images=16, labeled=16, seed=0, tick=quiet)
    params = demo_params(dataset__group_pattern="(.*)")
    prepare.run(
        params.dataset,
        params.prepare,
        raw=folder / "raw",
        out=folder / "out",
        checkpoints=folder / "checkpoints",
        run=StageRun(),
        tick=quiet,
    )
    return dict(json.loads((folder / "out/dataset.json").read_text()))


class Sets:
    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self._folder, self._facts = folder, facts

    def made(
        self, classes: tuple[str, ...], samples: Mapping[str, Sample], shard_bytes: int = 1,
        verdicts: Sequence[Verdict] = (),
    ) -> PreparedDataset:  # fmt: skip
        folder = self._folder / str(len([*self._folder.iterdir()]))
        folder.mkdir()
        writer = ShardWriter(folder / "shards", shard_bytes)
        pixels = {split: [0] * len(classes) for split in SPLITS}
        ignored = dict.fromkeys(SPLITS, 0)
        for name, (split, image, mask) in sorted(samples.items()):
            data = None if mask is None else encode_mask(np.array([mask], np.uint8))
            writer.add(Record(name, split, image, data, 1, 4, "g", name, digests(image, data)[1].hex()))
            for value in mask or []:
                if value == 255:
                    ignored[split] += 1
                else:
                    pixels[split][value] += 1
        writer.close()
        own = {"classes": classes, "class_pixels": pixels, "ignored_pixels": ignored}
        shards = {"shards": [shard._asdict() for shard in writer.shards]}
        (folder / "dataset.json").write_text(json.dumps(self._facts | own | shards))
        write_problems(folder / "problems.csv", verdicts)
        return PreparedDataset.open(folder)

    def compared(
        self, before: Mapping[str, Sample], now: Mapping[str, Sample], classes: tuple[str, ...] = AB,
        classes_now: tuple[str, ...] = AB,
    ) -> Difference:  # fmt: skip
        return compare(self.made(classes, before), self.made(classes_now, now, 10**9), quiet)


@pytest.fixture
def sets(tmp_path: Path, facts: dict[str, Any]) -> Sets:
    return Sets(tmp_path, facts)


BEFORE: dict[str, Sample] = {
    "added mask": ("train", b"1", None),
    "gone": ("train", b"2", [0, 0, 1, 1]),
    "gone too": ("unlabeled", b"3", None),
    "kept": ("train", b"4", [0, 1, 255, 255]),
    "lost mask": ("train", b"5", [1, 1, 1, 1]),
    "moved": ("train", b"6", [0, 0, 0, 0]),
    "other image": ("train", b"7", [0, 0, 0, 0]),
    "other mask": ("val", b"8", [0, 0, 1, 255]),
}


def test_every_kind_of_change_is_distinguished(sets: Sets) -> None:
    now: dict[str, Sample] = {
        "added mask": ("train", b"1", [1, 0, 0, 0]),
        "kept": BEFORE["kept"],
        "lost mask": ("train", b"5", None),
        "moved": ("test", b"6", [0, 0, 0, 0]),
        "new": ("train", b"9", [1, 255, 0, 0]),
        "new too": ("unlabeled", b"10", None),
        "other image": ("train", b"77", [0, 0, 0, 0]),
        "other mask": ("val", b"8", [0, 1, 1, 0]),
    }
    difference = sets.compared(BEFORE, now)
    assert difference.images == Changes(8, 8, ["new", "new too"], ["gone", "gone too"], ["other image"])
    assert difference.masks == Changes(6, 6, ["added mask", "new"], ["gone", "lost mask"], ["other mask"])
    assert difference.moved == [Move("moved", "train", "test")]
    assert (difference.recoded, difference.classes_added, difference.classes_removed) == ([], [], [])
    assert difference.classes_renamed == []
    # One mask has changed, from [0, 0, 1, 255] to [0, 1, 1, 0]. The other masks only contribute to the totals.
    assert difference.labels == [
        ClassPixels("a", 2 + 1 + 4 + 4 + 2, 3 + 1 + 4 + 2 + 4 + 2, gained=1, lost=1),
        ClassPixels("b", 2 + 1 + 4 + 1, 1 + 1 + 1 + 2, gained=1, lost=0),
        ClassPixels("(ignored)", 2 + 1, 2 + 1, gained=0, lost=1),
    ]


def test_equal_sets_with_different_shards_do_not_differ(sets: Sets) -> None:
    difference = sets.compared(BEFORE, BEFORE)
    assert (difference.images, difference.masks) == (Changes(8, 8), Changes(6, 6))
    assert not (difference.moved or difference.recoded or difference.classes_renamed)
    assert all((row.gained, row.lost, row.now) == (0, 0, row.before) for row in difference.labels)


def test_only_samples_with_different_digests_are_read(sets: Sets) -> None:
    seen: list[tuple[int, int, str]] = []
    now = BEFORE | {"other mask": ("val", b"8", [1, 1, 1, 1])}
    compare(sets.made(AB, BEFORE), sets.made(AB, now), lambda *told: seen.append(told))
    assert seen == [(1, 1, "other mask")]


def verdict(file: str, kind: str, outcome: Outcome = "quarantined") -> Verdict:
    return Verdict(Problem(file, "is bad", kind=kind), outcome)


def test_files_that_were_left_out_are_compared_with_their_reasons(sets: Sets) -> None:
    before = [
        verdict("images/a.png", "unreadable"), verdict("images/b.png", "unreadable"),
        verdict("masks/c.png", "mask_size"), verdict("images/copy.png", "duplicate", "duplicate"),
        verdict("images/e.jpg", "wrong_suffix", "allowed"),
    ]  # fmt: skip
    now = [
        verdict("masks/c.png", "mask_values"), verdict("masks/d.png", "mask_values"),
        verdict("images/b.png", "unreadable"), verdict("images/e.jpg", "duplicate", "duplicate"),
    ]  # fmt: skip
    difference = compare(sets.made(AB, BEFORE, 1, before), sets.made(AB, BEFORE, 1, now), quiet)
    assert difference.quarantined == Changes(
        3, 3, ["masks/d.png (mask_values)"], ["images/a.png (unreadable)"], ["masks/c.png (mask_size -> mask_values)"]
    )
    assert difference.duplicates == Changes(1, 1, ["images/e.jpg (duplicate)"], ["images/copy.png (duplicate)"])


def test_an_image_and_its_mask_can_change_together(sets: Sets) -> None:
    difference = sets.compared(BEFORE, BEFORE | {"kept": ("train", b"44", [1, 1, 255, 255])})
    assert (difference.images.changed, difference.masks.changed) == (["kept"], ["kept"])


def test_every_pixel_of_a_resized_mask_counts(sets: Sets) -> None:
    difference = sets.compared({"x": ("train", b"1", [0, 0])}, {"x": ("train", b"2", [0, 1, 1])})
    assert difference.masks.changed == ["x"]
    assert [row[3:] for row in difference.labels] == [(1, 2), (2, 0), (0, 0)]


def test_a_class_is_renamed_if_some_masks_are_unchanged(sets: Sets) -> None:
    difference = sets.compared(BEFORE, BEFORE, ("a", "b"), ("a", "scratch"))
    assert difference.classes_renamed == [("b", "scratch")]
    assert (difference.classes_added, difference.classes_removed) == ([], [])
    assert [(row.name, row.before, row.now) for row in difference.labels] == [
        ("a", 13, 13), ("scratch", 8, 8), ("(ignored)", 3, 3),
    ]  # fmt: skip


def test_sets_with_no_class_or_image_in_common_are_compared(sets: Sets) -> None:
    now: dict[str, Sample] = {"x": ("train", b"1", [0, 1, 1, 2])}
    difference = sets.compared({"y": ("val", b"2", [0, 1, 255, 1])}, now, AB, ("p", "q", "r"))
    assert (difference.classes_added, difference.classes_removed) == (["p", "q", "r"], ["a", "b"])
    assert difference.classes_renamed == []
    assert (difference.images.added, difference.images.removed) == (["x"], ["y"])
    assert [(row.name, row.before, row.now) for row in difference.labels] == [
        ("p", 0, 1), ("q", 0, 2), ("r", 0, 1), ("a", 1, 0), ("b", 2, 0), ("(ignored)", 1, 0),
    ]  # fmt: skip


def test_masks_with_the_same_classes_under_different_numbers_count_as_recoded(sets: Sets) -> None:
    """A class was inserted before the others, so their numbers changed."""
    difference = sets.compared(
        {"x": ("train", b"1", [0, 1, 255, 1])}, {"x": ("train", b"1", [1, 2, 255, 2])}, AB, ("new", *AB)
    )
    assert (difference.recoded, difference.masks.changed, difference.classes_added) == (["x"], [], ["new"])
    assert [(row.name, row.before, row.now, row.gained, row.lost) for row in difference.labels] == [
        ("new", 0, 0, 0, 0), ("a", 1, 1, 0, 0), ("b", 2, 2, 0, 0), ("(ignored)", 1, 1, 0, 0),
    ]  # fmt: skip


def test_masks_with_different_classes_under_the_same_numbers_count_as_changed(sets: Sets) -> None:
    """Two names were swapped; no byte of an image or mask changed."""
    samples: dict[str, Sample] = {"x": ("train", b"1", [0, 1, 255, 1]), "y": ("train", b"1", [255] * 4)}
    difference = sets.compared(samples, samples, ("a", "b"), ("b", "a"))
    assert (difference.masks.changed, difference.recoded) == (["x"], [])
    assert difference.labels == [
        ClassPixels("b", 2, 1, 1, 2),
        ClassPixels("a", 1, 2, 2, 1),
        ClassPixels("(ignored)", 1 + 4, 5, 0, 0),
    ]
