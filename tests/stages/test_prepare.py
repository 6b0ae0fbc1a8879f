import csv
import os
import re
import shutil
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pspnet.config.prepare import PrepareParams
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.errors import UserError
from pspnet.raw import inventory, pieces
from pspnet.raw.classes import IGNORE
from pspnet.raw.problems import counted
from pspnet.stages import prepare
from pspnet.tracking.run import StageRun
from tests.files import contents
from tests.limits import files_up_to
from tests.raw.rawdata import (
    dataset_params,
    encoded,
    noise,
    png_claiming,
    prepare_params,
    shared_data,
    write,
    write_pair,
)
from tests.tracking.runs import entries

SCENES = 24  # with seed 0 and the demo's shares, each split gets some of them


def quiet(done: int, total: int, note: str) -> None:
    pass


def run(raw: Path, out: Path, tick: Callable[[int, int, str], None] = quiet, **changes: Any) -> PreparedDataset:
    """Run `prepare`. `changes` are `merge` (folders of parts), `run`, and keys of the sections
    `dataset` and `prepare`.
    """
    own = {key: value for key, value in changes.items() if key.partition("__")[0] in PrepareParams.model_fields}
    dataset = {key: value for key, value in changes.items() if key not in (*own, "merge", "run")}
    prepare.run(
        dataset_params(**dataset), prepare_params(**own), raw=raw, out=out, checkpoints=out.parent / "checkpoints",
        merge=changes.get("merge", []), run=changes.get("run", StageRun()), tick=tick,
    )  # fmt: skip
    return PreparedDataset.open(out)


def mask_of(name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    values = np.array([0, 1, 255], np.uint8)
    return values[np.random.default_rng(zlib.crc32(name.encode())).integers(0, 3, (8, 12))]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Each scene has an image with a mask and one without; one scene has no masks."""
    folder = tmp_path / "raw"
    for scene in range(SCENES):
        write_pair(folder, f"scene{scene:02d}/1", mask_of(f"scene{scene:02d}"))
        write_pair(folder, f"scene{scene:02d}/2")
    write_pair(folder, "unseen/1")
    return folder


def test_every_image_and_mask_is_found_again(raw: Path, tmp_path: Path) -> None:
    dataset = run(raw, tmp_path / "out")
    reader, index = dataset.reader(), dataset.index()
    assert len(index) == 2 * SCENES + 1
    for row in index.itertuples():
        assert np.array_equal(reader.image(row.shard, row.row), noise(8, 12, zlib.crc32(row.id.encode())))
        assert row.has_mask == (row.id.startswith("scene") and row.id.endswith("/1"))
        if row.has_mask:
            expected = mask_of(row.group)
            assert np.array_equal(reader.mask(row.shard, row.row), np.where(expected == 255, IGNORE, expected))


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_data_packed_into_an_archive_has_the_same_fingerprint(raw: Path, tmp_path: Path, kind: str) -> None:
    loose = run(raw, tmp_path / "loose")
    shutil.make_archive(str(tmp_path / "packed/batch"), kind, raw)
    packed = run(tmp_path / "packed", tmp_path / "out")
    assert packed.fingerprints == loose.fingerprints
    columns = ["id", "split", "group", "height", "width", "has_mask"]
    assert packed.index()[columns].equals(loose.index()[columns])
    assert set(packed.index()["source"]) == {f"batch.{kind}/{source}" for source in loose.index()["source"]}


def test_color_masks_make_the_same_dataset(raw: Path, tmp_path: Path) -> None:
    numbered = run(raw, tmp_path / "numbers")
    colors = {0: (128, 64, 128), 1: (220, 20, 60), 255: (0, 0, 0)}
    table = np.array([colors.get(value, (1, 1, 1)) for value in range(256)], np.uint8)
    for path in (raw / "masks").rglob("*.png"):
        write(path, encoded(table[np.asarray(Image.open(path))]))
    colored = run(
        raw, tmp_path / "colors", source__mask_kind="colors", ignore_values=["#000000"],
        classes={"back": "#804080", "front": "#DC143C"},
    )  # fmt: skip
    assert colored.fingerprints == numbered.fingerprints
    assert colored.colors == (colors[0], colors[1])
    with pytest.raises(UserError, match=r"value '#000000' in [\d,]+ pixels"):
        run(
            raw, tmp_path / "other", source__mask_kind="colors", ignore_values=[],
            classes={"back": "#804080", "front": "#DC143C"},
        )  # fmt: skip


def test_the_folder_holds_only_shards_facts_and_a_report(raw: Path, tmp_path: Path) -> None:
    run(raw, tmp_path / "out")
    assert sorted(contents(tmp_path / "out")) == [
        "data_report.html",
        "dataset.json",
        "problems.csv",
        "shards/00000.arrow",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "out", "raw"]
    assert [path.suffix for path in (tmp_path / "checkpoints/prepare").iterdir()] == [".lock"]


def test_no_group_is_in_two_splits(raw: Path, tmp_path: Path) -> None:
    index = run(raw, tmp_path / "out").index()
    assert (index.groupby("group")["split"].nunique() == 1).all()
    assert set(index["split"]) == {"train", "val", "test", "unlabeled"}
    assert index.loc[index["split"] == "unlabeled", "id"].tolist() == ["unseen/1"]


def test_added_data_moves_no_sample_to_a_different_split(raw: Path, tmp_path: Path) -> None:
    before = run(raw, tmp_path / "before").index().set_index("id")["split"]
    for scene in range(30, 40):
        write_pair(raw, f"scene{scene}/1", mask_of(f"{scene}"))
    write_pair(raw, "scene00/3")
    after = run(raw, tmp_path / "after").index().set_index("id")["split"]
    assert len(after) == len(before) + 11
    assert after[before.index].equals(before)


def test_the_same_data_makes_the_same_bytes_wherever_it_is_stored(raw: Path, tmp_path: Path) -> None:
    write(raw / "images/scene00/broken.png", b"")
    run(raw, tmp_path / "one", tolerated_share=0.1)
    shutil.move(raw, tmp_path / "elsewhere")
    run(tmp_path / "elsewhere", tmp_path / "two", tolerated_share=0.1)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_old_output_and_the_remains_of_a_killed_run_are_replaced(raw: Path, tmp_path: Path) -> None:
    write(tmp_path / "out/old.txt", "old")
    write(tmp_path / "out.partial/shards/00000.arrow", "half")
    run(raw, tmp_path / "out")
    assert "old.txt" not in contents(tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()


def test_an_interrupted_run_leaves_no_output(raw: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int, note: str) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(raw, tmp_path / "out", interrupt)
    assert not (tmp_path / "out").exists()
    run(raw, tmp_path / "out")


def test_a_full_disk_is_reported_with_the_folder_and_the_space_needed(raw: Path, tmp_path: Path) -> None:
    with files_up_to(1000), pytest.raises(UserError) as error:
        run(raw, tmp_path / "out")
    (problem,) = error.value.problems
    assert problem.where.startswith(str(tmp_path / "checkpoints/prepare"))
    assert problem.found.startswith("has no room for ")
    assert re.fullmatch(r"about [\d.]+ kB of free space", problem.expected)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("*.partial"))
    assert run(raw, tmp_path / "out").images  # now there is enough space


def test_after_a_fix_only_its_piece_is_checked_again(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PIECE", 7)
    whole = run(raw, tmp_path / "whole")
    broken = raw / "images/scene00/2.png"
    sound = broken.read_bytes()
    broken.write_bytes(b"broken")
    with pytest.raises(UserError, match=r"scene00/2\.png"):
        run(raw, tmp_path / "out")
    broken.write_bytes(sound)
    ticks: list[int] = []
    mended = run(raw, tmp_path / "out", lambda done, *_: ticks.append(done))
    assert ticks == list(range(2 * SCENES + 1 - 7, 2 * SCENES + 2))
    assert mended.fingerprint == whole.fingerprint
    assert {path.suffix for path in (tmp_path / "checkpoints/prepare").iterdir()} == {".lock"}


def test_the_progress_counts_every_sample(raw: Path, tmp_path: Path) -> None:
    ticks: list[tuple[int, int, str]] = []
    run(raw, tmp_path / "out", lambda *tick: ticks.append(tick))
    total = 2 * SCENES + 1
    assert [tick[:2] for tick in ticks] == [(done, total) for done in range(total + 1)]


def listed(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def problems(out: Path) -> list[dict[str, str]]:
    return listed(out / "problems.csv")


def test_every_image_found_is_prepared_quarantined_or_a_duplicate(raw: Path, tmp_path: Path) -> None:
    write(raw / "images/scene00/broken.png", b"no image")
    write(raw / "images/scene00/notes.txt", "no image")
    write(raw / "masks/scene00/orphan.png", encoded(mask_of("")))
    write_pair(raw, "scene00/other", np.full((8, 12), 77, np.uint8))
    shutil.copyfile(raw / "images/scene00/2.png", raw / "images/scene00/copy.png")
    dataset = run(raw, tmp_path / "out", tolerated_share=0.1)
    assert (dataset.found, len(dataset.index())) == (2 * SCENES + 6, 2 * SCENES + 1)
    assert (dataset.quarantined, dataset.duplicates, dataset.left_out) == (4, 1, 0)
    assert [(row["file"], row["kind"], row["outcome"]) for row in problems(tmp_path / "out")] == [
        ("images/scene00/copy.png", "duplicate", "duplicate"),
        ("masks/scene00/other.png", "mask_values", "quarantined"),
        ("masks/scene00/orphan.png", "mask_without_image", "quarantined"),
        ("images/scene00/notes.txt", "not_an_image", "quarantined"),
        ("images/scene00/broken.png", "unreadable", "quarantined"),
    ]
    assert "scene00/other" not in dataset.index()["id"].tolist()
    page = (tmp_path / "out/data_report.html").read_text()
    assert all(row["file"] in page and row["found"].split(" (")[0] in page for row in problems(tmp_path / "out"))


def test_files_that_are_not_images_can_be_left_out_and_are_counted(raw: Path, tmp_path: Path) -> None:
    for number in range(40):
        write(raw / f"images/scene00/{number}.txt", "no image")
    write(raw / "masks/scene00/orphan.png", encoded(mask_of("")))
    dataset = run(raw, tmp_path / "out", problems__not_an_image="allow", problems__mask_without_image="allow")
    assert (dataset.left_out, dataset.quarantined, dataset.found) == (41, 0, 2 * SCENES + 42)


@pytest.mark.parametrize("kind", ["unreadable", "mask_values", "duplicate"])
def test_the_policy_error_stops_the_run_with_every_problem_of_that_kind(raw: Path, tmp_path: Path, kind: str) -> None:
    for number in range(2):
        write(raw / f"images/scene00/broken{number}.png", b"no image")
        write_pair(raw, f"scene00/other{number}", np.full((8, 12), 77, np.uint8))
        shutil.copyfile(raw / "images/scene01/2.png", raw / f"images/scene00/copy{number}.png")
    with pytest.raises(UserError, match=f"prepare.problems says {kind}: error") as error:
        run(raw, tmp_path / "out", tolerated_share=1.0, **{f"problems__{kind}": "error"})  # type: ignore[arg-type]
    assert [problem.kind for problem in error.value.problems] == [kind] * 2
    assert not (tmp_path / "out").exists()


def test_the_copy_with_a_mask_is_kept_or_else_the_one_in_test(raw: Path, tmp_path: Path) -> None:
    index = run(raw, tmp_path / "before").index().set_index("id")
    groups = {split: index.index[index["split"] == split][0].split("/")[0] for split in ("train", "val", "test")}
    first = sorted(groups.values())[0]
    # An image without a mask is removed.
    shutil.copyfile(raw / f"images/{groups['val']}/1.png", raw / f"images/{first}/0.png")
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            shutil.copyfile(raw / f"{kind}/{groups['test']}/1.png", raw / f"{kind}/{groups[split]}/3.png")
    dataset = run(raw, tmp_path / "out")
    assert dataset.duplicates == 3
    assert set(index.index) == set(dataset.index()["id"])


def scene(height: int, width: int, seed: int) -> Any:
    """Return large soft shapes, which look the same in a smaller copy."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(("policy", "duplicates"), [("quarantine", 1), ("allow", 0)])
def test_a_smaller_copy_in_a_different_split_is_found(tmp_path: Path, policy: str, duplicates: int) -> None:
    raw = tmp_path / "raw"
    for number in range(60):
        write(raw / f"images/{number:02d}.png", encoded(scene(120, 160, number)))
        write(raw / f"masks/{number:02d}.png", encoded(np.eye(120, 160, dtype=np.uint8)))
    write(raw / "images/a.jpg", encoded(scene(120, 160, 7).resize((80, 60)), "JPEG"))
    write(raw / "masks/a.png", encoded(np.eye(60, 80, dtype=np.uint8)))
    write(raw / "images/b.jpg", encoded(scene(120, 160, 7), "JPEG"))
    write(raw / "masks/b.png", encoded(np.eye(120, 160, dtype=np.uint8)))
    splits = ["07,test", "b,test", "a,train", "00,val", *(f"{n:02d},train" for n in range(1, 60) if n != 7)]
    write(raw / "splits.csv", "id,split\n" + "\n".join(splits) + "\n")
    dataset = run(raw, tmp_path / "out", group_pattern="(.*)", problems__near_duplicate=policy)
    assert dataset.duplicates == duplicates
    [row] = problems(tmp_path / "out")
    assert (row["file"], row["kind"]) == ("images/a.jpg", "near_duplicate")
    assert row["found"] == "looks like images/07.png (this one is in train, the other in test)"
    assert "2 of 2 images in test look like another one in the split" in (tmp_path / "out/data_report.html").read_text()


def test_a_smaller_labeled_fraction_keeps_all_images_and_some_masks_of_train(raw: Path, tmp_path: Path) -> None:
    whole = run(raw, tmp_path / "whole")
    half = run(raw, tmp_path / "half", labeled_fraction=0.5)
    quarter = run(raw, tmp_path / "quarter", labeled_fraction=0.25)
    assert whole.images == half.images == quarter.images
    assert half.fingerprints["test"] == whole.fingerprints["test"]
    ids = [set(dataset.annotated("train")["id"]) for dataset in (quarter, half, whole)]
    assert ids[0] < ids[1] < ids[2]
    assert half.masks["train"] == round(whole.masks["train"] / 2)
    assert half.masks["val"] == whole.masks["val"]


def test_refused_files_beyond_the_tolerated_share_stop_the_stage_all_at_once(raw: Path, tmp_path: Path) -> None:
    for number in range(3):
        write(raw / f"images/scene00/broken{number}.png", b"no image")
    with pytest.raises(UserError) as error:
        run(raw, tmp_path / "out", tolerated_share=2.99 / (2 * SCENES + 4))
    assert [problem.where for problem in error.value.problems] == [
        str(raw / f"images/scene00/broken{n}.png") for n in range(3)
    ]
    assert not (tmp_path / "out").exists()
    assert run(raw, tmp_path / "out", tolerated_share=3 / (2 * SCENES + 4)).quarantined == 3


def stopped(raw: Path, out: Path, **changes: Any) -> tuple[str, list[dict[str, str]]]:
    """Return the message of a stopped run and the problems in the file that the message refers to."""
    with pytest.raises(UserError) as error:
        run(raw, out, **changes)
    assert not out.exists()
    listing = out.parent / "checkpoints/prepare/problems.csv"
    rows = listed(listing)
    assert str(error.value).endswith(f"\n{listing} lists {counted(len(rows), 'problem')}.")
    return str(error.value), rows


def test_a_stopped_run_shows_twenty_problems_counts_all_and_lists_all(raw: Path, tmp_path: Path) -> None:
    for number in range(30):
        write(raw / f"images/scene00/broken{number:02d}.png", b"no image")
    message, rows = stopped(raw, tmp_path / "out")
    assert message.startswith("30 problems:\n")
    assert message.count(": cannot be recognized as an image") == 20
    assert "...: and 10 more. In all: 30 x expected one of JPEG" in message
    assert [row["file"] for row in rows] == [f"images/scene00/broken{number:02d}.png" for number in range(30)]
    assert {(row["kind"], row["outcome"]) for row in rows} == {("unreadable", "quarantined")}


def test_the_list_of_a_stopped_run_is_gone_after_the_next(raw: Path, tmp_path: Path) -> None:
    write(raw / "images/scene00/broken.png", b"no image")
    stopped(raw, tmp_path / "out")
    run(raw, tmp_path / "out", tolerated_share=0.1)
    assert not (tmp_path / "checkpoints/prepare/problems.csv").exists()


def test_the_run_that_was_stopped_keeps_the_list(raw: Path, tmp_path: Path) -> None:
    write(raw / "images/scene00/broken.png", b"no image")
    tracked = StageRun(tmp_path / "tracking", "prepare", {}, {"experiment": "m", "started": 1}, {"started": 1})
    stopped(raw, tmp_path / "out", run=tracked)
    assert tracked.journal and not tracked.error
    [entry] = [entry for entry in entries(tracked.journal.folder) if entry["kind"] == "artifact"]
    assert [row["file"] for row in listed(tracked.journal.folder / entry["file"])] == ["images/scene00/broken.png"]


def test_the_list_also_has_problems_that_do_not_stop_the_run(raw: Path, tmp_path: Path) -> None:
    write(raw / "images/scene00/broken.png", b"no image")
    (raw / "images/scene00/2.png").rename(raw / "images/scene00/2.jpg")
    _, rows = stopped(raw, tmp_path / "out")
    assert [(row["file"], row["outcome"]) for row in rows] == [
        ("images/scene00/2.jpg", "allowed"),
        ("images/scene00/broken.png", "quarantined"),
    ]


SCALED, TALLER = np.zeros((16, 24), np.uint8), np.zeros((9, 12), np.uint8)
HELPFUL = "To continue without repairing them, set in params.yaml:\n  "


@pytest.mark.parametrize(
    ("name", "content", "policy"),
    [
        ("masks/scene00/1.png", encoded(SCALED), "mask_size: fix"),
        ("masks/scene00/1.png", encoded(TALLER), None),  # a mask can only be scaled if its shape is the same
        ("masks/scene00/1.png", encoded(np.full((8, 12), 77, np.uint8)), "mask_values: fix"),
        ("masks/scene00/3.png", encoded(np.zeros((8, 12), np.uint8)), "mask_without_image: allow"),
        ("images/scene00/notes.txt", b"words", "not_an_image: allow"),
        ("images/scene00/2.png", b"no image", None),
    ],
    ids=["scaled mask", "mask of another shape", "unknown value", "mask alone", "notes", "broken image"],
)
def test_a_stopped_run_names_the_policies_that_would_help(
    raw: Path, tmp_path: Path, name: str, content: bytes, policy: str | None
) -> None:
    write(raw / name, content)
    message, _ = stopped(raw, tmp_path / "out")
    found = 2 * SCENES + 1 + (not name.endswith(("1.png", "2.png")))
    share = f"prepare.tolerated_share: {0.021 if found == 49 else 0.02}  # leaves out 1 file"
    helpful = [f"prepare.problems.{policy}  # for 1 problem", share] if policy else [share]
    assert message.partition(HELPFUL)[2].splitlines()[:-1] == [helpful[0], *(f"  {line}" for line in helpful[1:])]
    key, _, choice = (policy or "").partition(": ")
    followed = {f"problems__{key}": choice} if policy else {"tolerated_share": float(share.split()[1])}
    run(raw, tmp_path / "out", **followed)


def test_a_policy_that_stops_the_run_is_named_with_those_that_would_not(raw: Path, tmp_path: Path) -> None:
    shutil.copyfile(raw / "images/scene01/2.png", raw / "images/scene00/copy.png")
    message, _ = stopped(raw, tmp_path / "out", problems__duplicate="error")
    assert message.splitlines()[1:-1] == [
        "prepare.problems says duplicate: error.",
        "To continue without repairing them, set in params.yaml:",
        "  prepare.problems.duplicate: allow or quarantine  # for 1 problem",
    ]


def two_groups(raw: Path) -> None:
    write_pair(raw, "one/1", mask_of(""))
    write_pair(raw, "two/1", mask_of(""))
    write(raw / "masks/two/1.png", b"")


def test_splits_are_checked_after_the_files_so_that_an_empty_file_is_named(tmp_path: Path) -> None:
    two_groups(tmp_path / "raw")
    message, rows = stopped(tmp_path / "raw", tmp_path / "out")
    assert message.startswith("2 problems:\n  splits: masks: ")
    assert (
        f"  {tmp_path}/raw/masks/two/1.png: is empty (0 bytes); expected an image. Copy or export it again" in message
    )
    assert [row["file"] for row in rows] == ["splits", "masks/two/1.png"]


def test_splits_without_masks_are_reported_at_once_if_reading_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventory, "LONG_BYTES", 1)
    two_groups(tmp_path / "raw")
    ticks: list[int] = []
    message, rows = stopped(tmp_path / "raw", tmp_path / "out", tick=lambda done, *_: ticks.append(done))
    assert message.startswith("splits: masks: ")
    assert not ticks
    assert len(rows) == 1


@pytest.mark.parametrize("policy", ["error", "quarantine", "allow"])
def test_equal_images_with_different_masks_contradict_each_other(raw: Path, tmp_path: Path, policy: str) -> None:
    index = run(raw, tmp_path / "before").index()
    scene = index[index["split"] == "train"]["group"].iloc[0]
    for name in ("1a", "1b", "1c", "1d"):
        shutil.copyfile(raw / f"images/{scene}/1.png", raw / f"images/{scene}/{name}.png")
    for name in ("1a", "1b"):
        shutil.copyfile(raw / f"masks/{scene}/1.png", raw / f"masks/{scene}/{name}.png")
    write(raw / f"masks/{scene}/1c.png", encoded(1 - mask_of(scene) % 2))
    changes = {"problems__differing_masks": policy, "tolerated_share": 0.1}
    if policy == "error":
        _, rows = stopped(raw, tmp_path / "out", **changes)
    else:
        dataset = run(raw, tmp_path / "out", **changes)  # type: ignore[arg-type]
        rows = problems(tmp_path / "out")
        used = [name for name in dataset.index()["id"] if name.startswith(f"{scene}/1")]
        assert used == ([f"{scene}/1d"] if policy == "quarantine" else [f"{scene}/1"])
        assert (dataset.quarantined, dataset.duplicates) == ((4, 0) if policy == "quarantine" else (0, 4))
    contradicting = [row for row in rows if row["kind"] == "differing_masks"]
    assert [row["file"] for row in contradicting] == [f"images/{scene}/{name}.png" for name in ("1", "1a", "1b", "1c")]
    masks = f"masks/{scene}/1.png and masks/{scene}/1c.png"
    assert contradicting[0]["found"] == f"is the same image as images/{scene}/1c.png, but their masks differ ({masks})"


def test_a_split_that_loses_its_only_mask_stops_the_stage(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for split in ("train", "val", "test"):
        write_pair(raw, f"{split}/1", mask_of(split))
    write(raw / "splits.csv", "id,split\ntrain/1,train\nval/1,val\ntest/1,test\n")
    write(raw / "masks/val/1.png", b"broken")
    with pytest.raises(UserError, match="0 in val") as error:
        run(raw, tmp_path / "out", tolerated_share=1.0)
    assert error.value.problems[1].where == str(raw / "masks/val/1.png")


def test_official_splits_are_kept(raw: Path, tmp_path: Path) -> None:
    splits = ["train", "val", "test", "unlabeled"]
    rows = [f"scene{scene:02d}/1,{splits[scene % 4]}" for scene in range(SCENES)]
    write(raw / "splits.csv", "id,split\n" + "\n".join(rows) + "\n")
    dataset = run(raw, tmp_path / "out")
    index = dataset.index().set_index("id")
    assert all(
        index.loc[f"scene{scene:02d}/{frame}", "split"] == splits[scene % 4]
        for scene in range(SCENES)
        for frame in (1, 2)
    )
    assert dataset.masks == {"train": 6, "val": 6, "test": 6, "unlabeled": 0}


def test_contradictory_official_splits_stop_the_stage_or_are_fixed(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for name in ("a/1", "a/2", "b/1", "c/1"):
        write_pair(raw, name, mask_of(name))
    write(raw / "splits.csv", "id,split\na/1,train\na/2,test\nb/1,train\nc/1,val\n")
    with pytest.raises(UserError, match=r"^group 'a': has two splits: train \(a/1\), test \(a/2\)"):
        run(raw, tmp_path / "out")
    dataset = run(raw, tmp_path / "out", problems__contradicting_splits="fix")
    assert dataset.index().set_index("id")["split"].to_dict() == {
        "a/1": "test",
        "a/2": "test",
        "b/1": "train",
        "c/1": "val",
    }
    assert dataset.found == 4
    [row] = [row for row in problems(tmp_path / "out") if row["kind"] == "contradicting_splits"]
    assert (row["file"], row["outcome"]) == ("group 'a'", "fixed")


def test_contradictory_lists_of_a_layout_are_fixed_and_not_counted(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for number in range(4):
        write(raw / f"JPEGImages/{number}.jpg", encoded(noise(4, 4, number), "JPEG"))
        write(raw / f"SegmentationClass/{number}.png", encoded(np.full((4, 4), number % 2, np.uint8)))
    for split, names in {"train": "0 1 2", "val": "2", "test": "3"}.items():
        write(raw / f"ImageSets/Segmentation/{split}.txt", names)
    source = {
        "layout": "voc", "images": "JPEGImages", "masks": "SegmentationClass", "splits": "ImageSets/Segmentation",
    }  # fmt: skip
    own = {"source": source, "classes": {}, "ignore_values": [], "group_pattern": "(.*)"}
    with pytest.raises(UserError, match=r"lists 2, which is also in ImageSets/Segmentation/val\.txt"):
        run(raw, tmp_path / "out", **own)  # type: ignore[arg-type]
    dataset = run(raw, tmp_path / "out", problems__contradicting_splits="fix", **own)  # type: ignore[arg-type]
    assert dataset.index()["split"].tolist() == ["train", "train", "val", "test"]
    assert (dataset.found, dataset.quarantined) == (4, 0)


def test_awkward_files_are_prepared_or_refused_and_none_is_lost(raw: Path, tmp_path: Path) -> None:
    files = [path for path in sorted((shared_data("awkward")).rglob("*")) if path.is_file()]
    for number, path in enumerate(files):
        shutil.copyfile(path, raw / "images" / f"{number:03d}{path.suffix}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = run(raw, tmp_path / "out", group_pattern="(.*)", tolerated_share=0.5, max_megapixels=1.0)
    left_out = [row["file"] for row in problems(tmp_path / "out") if row["outcome"] in ("quarantined", "duplicate")]
    there = [path.relative_to(raw).as_posix() for path in (raw / "images").rglob("*") if path.is_file()]
    assert sorted([*dataset.index()["source"], *left_out]) == sorted(there)
    assert len(left_out) > 15
    reader = dataset.reader()
    for shard, row, height, width in dataset.index()[["shard", "row", "height", "width"]].itertuples(index=False):
        assert reader.image(shard, row).shape == (height, width, 3)


def test_real_masks_of_road_scenes_are_prepared(tmp_path: Path) -> None:
    camvid = shared_data("camvid")
    for folder in ("images", "masks"):
        for path in sorted((camvid / folder / "val").iterdir())[:3]:
            write(tmp_path / f"raw/{folder}/{path.name}", path.read_bytes())
    names = sorted(path.stem for path in (tmp_path / "raw/images").iterdir())
    rows = [f"{name},{split}\n" for name, split in zip(names, ("train", "val", "test"), strict=True)]
    write(tmp_path / "raw/splits.csv", "id,split\n" + "".join(rows))
    classes = {f"class{value}": value for value in range(11)}
    dataset = run(tmp_path / "raw", tmp_path / "out", classes=classes, ignore_values=[11], group_pattern="(.*)")
    assert dataset.masks == {"train": 1, "val": 1, "test": 1, "unlabeled": 0}
    assert all(sum(dataset.class_pixels[s]) + dataset.ignored_pixels[s] == 480 * 360 for s in ("train", "val", "test"))


def test_files_that_cannot_be_read_from_their_archive_are_named_in_the_report(raw: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(raw / "batch.zip", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the warning is about the second name
        for seed in range(2):
            archive.writestr("images/scene00/twice.png", encoded(noise(8, 12, seed)))
    run(raw, tmp_path / "out", tolerated_share=0.1)
    [row] = problems(tmp_path / "out")
    assert (row["file"], row["kind"]) == ("batch.zip/images/scene00/twice.png", "unreadable")


def test_names_that_are_not_text_are_reported_and_no_cell_is_a_formula(raw: Path, tmp_path: Path) -> None:
    """Links are reported under the links' own names."""
    no_text = os.fsdecode(b"caf\xe9\x1b[2J")
    with tarfile.open(raw / "day.tar", "w") as file:
        link = tarfile.TarInfo(f"images/{no_text}.png")
        link.type, link.linkname = tarfile.SYMTYPE, "1.png"
        file.addfile(link)
    (raw / "images/two\nlines").symlink_to(tmp_path, target_is_directory=True)
    (raw / "images" / no_text).symlink_to(tmp_path, target_is_directory=True)
    write(raw / "=1+1.tar", b"no archive")
    run(raw, tmp_path / "out", tolerated_share=1.0)
    with (tmp_path / "out/problems.csv").open(encoding="utf-8", newline="") as file:
        reported = {row["file"]: row["found"] for row in csv.DictReader(file)}
    assert sorted(reported) == [
        "'=1+1.tar",
        r"day.tar/images/caf\udce9\x1b[2J.png",
        r"images/caf\udce9\x1b[2J",
        r"images/two\nlines",
    ]
    assert r"images/two\nlines" in (tmp_path / "out/data_report.html").read_text(encoding="utf-8")


@pytest.mark.e2e
def test_an_image_for_which_the_memory_is_not_enough_is_named(raw: Path, tmp_path: Path) -> None:
    """The file is a few bytes that claim 3,000 megapixels. Pillow cannot allocate that much memory."""
    write(raw / "images/scene00/3.png", png_claiming(1_000_000_000, 3))
    run(raw, tmp_path / "out", tolerated_share=1.0, max_megapixels=3000)
    with (tmp_path / "out/problems.csv").open(encoding="utf-8", newline="") as file:
        [reported] = csv.DictReader(file)
    assert (reported["file"], reported["found"]) == ("images/scene00/3.png", "needs more memory than there is")
