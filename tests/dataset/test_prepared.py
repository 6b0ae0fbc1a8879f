import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from pspnet.dataset.classes import Classes
from pspnet.dataset.description import describe
from pspnet.dataset.masks import Numbers
from pspnet.dataset.prepared import PreparedDataset
from pspnet.dataset.raw import RawFiles
from pspnet.dataset.raw_samples import RawSample
from pspnet.dataset.samples import Split
from pspnet.dataset.shards import ShardWriter, open_shard
from pspnet.dataset.summary import Summary
from pspnet.dataset.validation import Checked, check
from pspnet.errors import Problem, UserError
from tests.dataset.rawdata import LIMIT, encoded, write

CLASSES = Classes(("back", "front"), ((1, 2, 3), (9, 9, 9)), {0: 0, 1: 1}, (255,))
PLACES: list[tuple[str, Split, bool]] = [
    ("a", "train", True),
    ("b", "unlabeled", False),
    ("c", "val", True),
    ("d", "test", True),
    ("e", "test", False),
]
SHADES = {"a": 0, "b": 255, "c": 10, "d": 20, "e": 30}
REFUSED = Problem("images/x.png", "is bad", "good", "Mend it.")


@pytest.fixture
def dataset(tmp_path: Path) -> PreparedDataset:
    """Images of two pixels, each of one shade; masks of one pixel of class 1 and one ignored; a shard per sample."""
    return make(tmp_path)


def make(folder: Path, shades: dict[str, int] = SHADES) -> PreparedDataset:
    out = folder / "prepared"
    out.mkdir()
    writer, summary = ShardWriter(out / "shards", 1), Summary(CLASSES)
    for name, split, labelled in PLACES:
        write(folder / f"raw/{name}.png", encoded(np.full((1, 2, 3), shades[name], np.uint8)))
        write(folder / f"raw/m{name}.png", encoded(np.array([[1, 255]], np.uint8)))
        sample = RawSample(name, f"{name}.png", Numbers(f"m{name}.png") if labelled else None, f"group {name}", None)
        checked = check(sample, split, files=RawFiles(folder / "raw"), classes=CLASSES, max_pixels=LIMIT)
        assert isinstance(checked, Checked)
        writer.add(checked.record)
        summary.add(checked)
    writer.close()
    summary.dataset(out, writer.shards, [REFUSED]).write()
    return PreparedDataset.open(out)


def test_the_facts_are_read_as_they_were_written(dataset: PreparedDataset) -> None:
    assert dataset.classes == ("back", "front")
    assert dataset.colors == ((1, 2, 3), (9, 9, 9))
    assert dataset.ignore == 255
    assert dataset.images == {"train": 1, "val": 1, "test": 2, "unlabeled": 1}
    assert dataset.masks == {"train": 1, "val": 1, "test": 1, "unlabeled": 0}
    assert dataset.class_pixels == {"train": [0, 1], "val": [0, 1], "test": [0, 1], "unlabeled": [0, 0]}
    assert dataset.ignored_pixels == {"train": 1, "val": 1, "test": 1, "unlabeled": 0}
    assert dataset.refused == (("images/x.png", "is bad; expected good. Mend it."),)
    facts = json.loads((dataset.folder / "dataset.json").read_text())
    assert (facts["counts"]["found"], facts["counts"]["prepared"], facts["counts"]["refused"]) == (6, 5, 1)


def test_mean_and_std_are_those_of_train_and_unlabeled_pixels(dataset: PreparedDataset) -> None:
    assert dataset.mean == (0.5, 0.5, 0.5)  # half the pixels 0, half 1
    assert dataset.std == (0.5, 0.5, 0.5)


def test_std_of_a_constant_channel_is_no_zero(tmp_path: Path) -> None:
    assert make(tmp_path, dict.fromkeys(SHADES, 7)).std == (0.003922,) * 3


def test_the_index_has_a_row_for_each_sample_by_id(dataset: PreparedDataset) -> None:
    index = dataset.index()
    assert list(index) == ["id", "split", "group", "source", "height", "width", "has_mask", "shard", "row"]
    assert index["id"].tolist() == ["a", "b", "c", "d", "e"]
    assert index["split"].tolist() == ["train", "unlabeled", "val", "test", "test"]
    assert index["has_mask"].tolist() == [True, False, True, True, False]
    assert index["shard"].tolist() == [0, 1, 2, 3, 4]
    assert index.loc[3, ["group", "source", "height", "width", "row"]].tolist() == ["group d", "d.png", 1, 2, 0]


def test_annotated_are_the_images_of_a_split_that_have_masks(dataset: PreparedDataset) -> None:
    assert dataset.annotated("test")["id"].tolist() == ["d"]


def test_the_reader_shows_what_the_index_names(dataset: PreparedDataset) -> None:
    reader = dataset.reader()
    for name, shard, row in dataset.index()[["id", "shard", "row"]].itertuples(index=False):
        assert reader.image(shard, row).tolist() == [[[SHADES[name]] * 3] * 2]
    assert reader.mask(2, 0).tolist() == [[1, 255]]


def test_a_fingerprint_is_the_digest_of_class_names_ids_and_contents(dataset: PreparedDataset) -> None:

    sums = [open_shard(dataset.folder / f"shards/0000{n}.arrow").column("sha256")[0].as_py() for n in (3, 4)]
    lines = f'["back", "front"]\n{sums[0]} "d"\n{sums[1]} "e"\n'
    assert dataset.fingerprints["test"] == hashlib.sha256(lines.encode()).hexdigest()


def test_another_train_image_changes_the_fingerprints_of_train_and_of_the_whole_only(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = make(tmp_path / "one"), make(tmp_path / "two", {**SHADES, "a": 1})
    assert one.fingerprint != two.fingerprint
    assert [split for split in one.fingerprints if one.fingerprints[split] != two.fingerprints[split]] == ["train"]


def test_a_missing_dataset_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dvc repro prepare"):
        PreparedDataset.open(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"format_version": 2}'])
def test_a_dataset_of_another_format_is_refused(tmp_path: Path, text: str) -> None:
    write(tmp_path / "dataset.json", text)
    with pytest.raises(UserError, match=r"dataset\.json"):
        PreparedDataset.open(tmp_path)


def test_the_description_names_counts_absent_classes_and_refused_files(dataset: PreparedDataset) -> None:
    text = describe(dataset)
    assert "6 found: 5 prepared, 1 refused." in text
    assert "| test | 2 | 1 | 1 |" in text
    assert "| front | 50.00% | 50.00% | 50.00% |" in text
    assert "| (ignored) | 50.00% | 50.00% | 50.00% |" in text
    assert "**No mask in val shows: back.**" in text
    assert "| 2 x 1 | 5 |" in text
    assert "| images/x.png | is bad; expected good. Mend it. |" in text
