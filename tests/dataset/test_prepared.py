import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.dataset.store.shards import Record, ShardWriter, digests, open_shard
from pspnet.dataset.store.splits import Split
from pspnet.errors import UserError
from pspnet.raw.classes import Classes
from pspnet.raw.data_report import absent_classes
from pspnet.raw.files import RawFiles
from pspnet.raw.masks import Numbers
from pspnet.raw.problems import Outcome
from pspnet.raw.sample import RawSample
from pspnet.raw.summary import Summary
from pspnet.raw.validation import check
from tests.raw.rawdata import encoded, rules, write

CLASSES = Classes(("back", "front"), ((1, 2, 3), (9, 9, 9)), {0: 0, 1: 1}, (255,))
PLACES: list[tuple[str, Split, bool]] = [
    ("a", "train", True),
    ("b", "unlabeled", False),
    ("c", "val", True),
    ("d", "test", True),
    ("e", "test", False),
]
SHADES = {"a": 0, "b": 255, "c": 10, "d": 20, "e": 30}


@pytest.fixture
def dataset(tmp_path: Path) -> PreparedDataset:
    """Images with two pixels of the same shade, masks with one pixel of class 1 and one ignored pixel, and one shard
    per sample.
    """
    return make(tmp_path)


def make(folder: Path, shades: dict[str, int] = SHADES) -> PreparedDataset:
    out = folder / "prepared"
    out.mkdir()
    writer, summary = ShardWriter(out / "shards", 1), Summary(CLASSES)
    for name, split, labeled in PLACES:
        write(folder / f"raw/{name}.png", encoded(np.full((1, 2, 3), shades[name], np.uint8)))
        write(folder / f"raw/m{name}.png", encoded(np.array([[1, 255]], np.uint8)))
        sample = RawSample(name, f"{name}.png", Numbers(f"m{name}.png") if labeled else None, f"group {name}", None)
        checked = check(sample, files=RawFiles(folder / "raw"), rules=rules(CLASSES))
        assert checked.image
        record = Record(
            name, split, checked.image, checked.mask, checked.height, checked.width, sample.group, sample.image,
            digests(checked.image, checked.mask)[1].hex(),
        )  # fmt: skip
        writer.add(record)
        summary.add(record, checked.channel_sums, checked.class_counts)
    writer.close()
    outcomes: Counter[Outcome] = Counter({"quarantined": 3, "duplicate": 2, "left out": 1})
    summary.dataset(out, writer.shards, outcomes).write()
    return PreparedDataset.open(out)


def test_facts_are_read_back_as_written(dataset: PreparedDataset) -> None:
    assert dataset.classes == ("back", "front")
    assert dataset.colors == ((1, 2, 3), (9, 9, 9))
    assert dataset.ignore == 255
    assert dataset.images == {"train": 1, "val": 1, "test": 2, "unlabeled": 1}
    assert dataset.masks == {"train": 1, "val": 1, "test": 1, "unlabeled": 0}
    assert dataset.class_pixels == {"train": [0, 1], "val": [0, 1], "test": [0, 1], "unlabeled": [0, 0]}
    assert dataset.ignored_pixels == {"train": 1, "val": 1, "test": 1, "unlabeled": 0}
    assert (dataset.quarantined, dataset.duplicates, dataset.left_out, dataset.found) == (3, 2, 1, 11)
    counts = json.loads((dataset.folder / "dataset.json").read_text())["counts"]
    assert {key: counts[key] for key in ("found", "prepared", "quarantined", "duplicates", "left_out")} == {
        "found": 11, "prepared": 5, "quarantined": 3, "duplicates": 2, "left_out": 1,
    }  # fmt: skip


def test_mean_and_std_cover_the_pixels_of_train_and_unlabeled(dataset: PreparedDataset) -> None:
    assert dataset.mean == (0.5, 0.5, 0.5)  # half of the pixels are 0, and half are 1
    assert dataset.std == (0.5, 0.5, 0.5)


def test_the_std_of_a_constant_channel_is_not_zero(tmp_path: Path) -> None:
    assert make(tmp_path, dict.fromkeys(SHADES, 7)).std == (0.003922,) * 3


def test_the_index_has_a_row_for_each_sample_by_id(dataset: PreparedDataset) -> None:
    index = dataset.index()
    assert list(index) == ["id", "split", "group", "source", "height", "width", "has_mask", "shard", "row"]
    assert index["id"].tolist() == ["a", "b", "c", "d", "e"]
    assert index["split"].tolist() == ["train", "unlabeled", "val", "test", "test"]
    assert index["has_mask"].tolist() == [True, False, True, True, False]
    assert index["shard"].tolist() == [0, 1, 2, 3, 4]
    assert index.loc[3, ["group", "source", "height", "width", "row"]].tolist() == ["group d", "d.png", 1, 2, 0]


def test_annotated_returns_the_images_of_a_split_with_masks(dataset: PreparedDataset) -> None:
    assert dataset.annotated("test")["id"].tolist() == ["d"]


def test_the_reader_finds_samples_through_the_index(dataset: PreparedDataset) -> None:
    reader = dataset.reader()
    for name, shard, row in dataset.index()[["id", "shard", "row"]].itertuples(index=False):
        assert reader.image(shard, row).tolist() == [[[SHADES[name]] * 3] * 2]
    assert reader.mask(2, 0).tolist() == [[1, 255]]


def test_a_fingerprint_is_the_digest_of_class_names_ids_and_contents(dataset: PreparedDataset) -> None:

    sums = [open_shard(dataset.folder / f"shards/0000{n}.arrow").column("sha256")[0].as_py() for n in (3, 4)]
    lines = f'["back", "front"]\n{sums[0]} "d"\n{sums[1]} "e"\n'
    assert dataset.fingerprints["test"] == hashlib.sha256(lines.encode()).hexdigest()


def test_an_extra_train_image_changes_only_two_fingerprints(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = make(tmp_path / "one"), make(tmp_path / "two", {**SHADES, "a": 1})
    assert one.fingerprint != two.fingerprint
    assert [split for split in one.fingerprints if one.fingerprints[split] != two.fingerprints[split]] == ["train"]


def test_a_missing_dataset_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dvc repro prepare"):
        PreparedDataset.open(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"format_version": 1}'])
def test_a_dataset_in_a_different_format_is_refused(tmp_path: Path, text: str) -> None:
    write(tmp_path / "dataset.json", text)
    with pytest.raises(UserError, match=r"dataset\.json"):
        PreparedDataset.open(tmp_path)


def test_classes_absent_from_a_split_are_named(dataset: PreparedDataset) -> None:
    problems = absent_classes(dataset)
    assert [problem.where for problem in problems] == ["split 'train'", "split 'val'", "split 'test'"]
    assert {problem.found for problem in problems} == {"no mask shows back"}
