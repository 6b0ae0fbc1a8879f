import json
import shutil
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pspnet.dataset.classes import IGNORE
from pspnet.dataset.prepared import PreparedDataset
from pspnet.errors import UserError
from pspnet.stages import prepare
from pspnet.tracking.run import StageRun
from tests.dataset.rawdata import dataset_params, encoded, noise, shared_data, write, write_pair
from tests.parameters import demo_params

SCENES = 24  # with seed 0 and the demo's shares, some of them in each split


def quiet(done: int, total: int, note: str) -> None:
    pass


def run(raw: Path, out: Path, tick: Callable[[int, int, str], None] = quiet, **changes: Any) -> PreparedDataset:
    dataset = {key: value for key, value in changes.items() if key not in ("tolerated_share", "max_megapixels")}
    params = demo_params(**{f"prepare__{key}": value for key, value in changes.items() if key not in dataset})
    prepare.run(dataset_params(**dataset), params.prepare, raw=raw, out=out, run=StageRun(), tick=tick)
    return PreparedDataset.open(out)


def mask_of(name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    values = np.array([0, 1, 255], np.uint8)
    return values[np.random.default_rng(zlib.crc32(name.encode())).integers(0, 3, (8, 12))]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Of each scene an image with a mask and one without; one scene has no mask."""
    folder = tmp_path / "raw"
    for scene in range(SCENES):
        write_pair(folder, f"scene{scene:02d}/1", mask_of(f"scene{scene:02d}"))
        write_pair(folder, f"scene{scene:02d}/2")
    write_pair(folder, "unseen/1")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


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
def test_packed_into_an_archive_the_same_data_have_the_same_fingerprint(raw: Path, tmp_path: Path, kind: str) -> None:
    loose = run(raw, tmp_path / "loose")
    shutil.make_archive(str(tmp_path / "packed/batch"), kind, raw)
    packed = run(tmp_path / "packed", tmp_path / "out")
    assert packed.fingerprints == loose.fingerprints
    columns = ["id", "split", "group", "height", "width", "has_mask"]
    assert packed.index()[columns].equals(loose.index()[columns])
    assert set(packed.index()["source"]) == {f"batch.{kind}/{source}" for source in loose.index()["source"]}


def test_masks_in_colours_make_the_same_dataset(raw: Path, tmp_path: Path) -> None:
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


def test_the_folder_holds_shards_facts_and_a_report_only(raw: Path, tmp_path: Path) -> None:
    run(raw, tmp_path / "out")
    assert sorted(contents(tmp_path / "out")) == ["dataset.json", "report.md", "shards/00000.arrow"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]


def test_no_group_is_in_two_splits(raw: Path, tmp_path: Path) -> None:
    index = run(raw, tmp_path / "out").index()
    assert (index.groupby("group")["split"].nunique() == 1).all()
    assert set(index["split"]) == {"train", "val", "test", "unlabeled"}
    assert index.loc[index["split"] == "unlabeled", "id"].tolist() == ["unseen/1"]


def test_data_added_moves_no_sample_to_another_split(raw: Path, tmp_path: Path) -> None:
    before = run(raw, tmp_path / "before").index().set_index("id")["split"]
    for scene in range(30, 40):
        write_pair(raw, f"scene{scene}/1", mask_of(f"{scene}"))
    write_pair(raw, "scene00/3")
    after = run(raw, tmp_path / "after").index().set_index("id")["split"]
    assert len(after) == len(before) + 11
    assert after[before.index].equals(before)


def test_the_same_data_makes_the_same_bytes_wherever_it_lies(raw: Path, tmp_path: Path) -> None:
    write(raw / "images/scene00/broken.png", b"")
    run(raw, tmp_path / "one", tolerated_share=0.1)
    shutil.move(raw, tmp_path / "elsewhere")
    run(tmp_path / "elsewhere", tmp_path / "two", tolerated_share=0.1)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_an_output_from_before_and_what_a_killed_run_left_are_replaced(raw: Path, tmp_path: Path) -> None:
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


def test_each_sample_is_ticked(raw: Path, tmp_path: Path) -> None:
    ticks: list[tuple[int, int, str]] = []
    run(raw, tmp_path / "out", lambda *tick: ticks.append(tick))
    total = 2 * SCENES + 1
    assert [tick[:2] for tick in ticks] == [(done, total) for done in range(1, total + 1)]


def test_found_is_prepared_and_refused(raw: Path, tmp_path: Path) -> None:
    write(raw / "images/scene00/broken.png", b"no image")  # refused when decoded
    write(raw / "images/scene00/notes.txt", "no image")  # refused by its name
    write(raw / "masks/scene00/orphan.png", encoded(mask_of("")))  # refused for want of an image
    write_pair(raw, "scene00/other", np.full((8, 12), 77, np.uint8))  # refused for its values
    dataset = run(raw, tmp_path / "out", tolerated_share=0.1)
    counts = json.loads((tmp_path / "out/dataset.json").read_text())["counts"]
    assert (counts["found"], counts["prepared"], counts["refused"]) == (2 * SCENES + 5, 2 * SCENES + 1, 4)
    assert [file for file, _ in dataset.refused] == [
        "images/scene00/notes.txt",
        "masks/scene00/orphan.png",
        "images/scene00/broken.png",
        "masks/scene00/other.png",
    ]
    assert "scene00/other" not in dataset.index()["id"].tolist()
    assert "masks/scene00/other.png" in (tmp_path / "out/report.md").read_text()


def test_refused_files_beyond_the_tolerated_share_stop_the_stage_all_at_once(raw: Path, tmp_path: Path) -> None:
    for number in range(3):
        write(raw / f"images/scene00/broken{number}.png", b"no image")
    with pytest.raises(UserError) as error:
        run(raw, tmp_path / "out", tolerated_share=2.99 / (2 * SCENES + 4))
    assert [problem.where for problem in error.value.problems] == [
        str(raw / f"images/scene00/broken{n}.png") for n in range(3)
    ]
    assert not (tmp_path / "out").exists()
    assert len(run(raw, tmp_path / "out", tolerated_share=3 / (2 * SCENES + 4)).refused) == 3


def test_many_refused_files_are_counted(raw: Path, tmp_path: Path) -> None:
    for number in range(30):
        write(raw / f"images/scene00/broken{number}.png", b"no image")
    with pytest.raises(UserError, match=r"and 10 more\. In all: 30 x expected one of JPEG"):
        run(raw, tmp_path / "out")


def test_splits_without_masks_are_told_before_anything_is_read(tmp_path: Path) -> None:
    write_pair(tmp_path / "raw", "only/1", mask_of(""))
    write_pair(tmp_path / "raw", "only/2", mask_of(""))
    ticks: list[int] = []
    with pytest.raises(UserError, match=r"masks: .*2 in .*expected at least one in each"):
        run(tmp_path / "raw", tmp_path / "out", lambda done, *_: ticks.append(done))
    assert not ticks


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


def test_awkward_files_are_prepared_or_refused_and_none_is_lost(raw: Path, tmp_path: Path) -> None:
    files = [path for path in sorted((shared_data("awkward")).rglob("*")) if path.is_file()]
    for number, path in enumerate(files):
        shutil.copyfile(path, raw / "images" / f"{number:03d}{path.suffix}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = run(raw, tmp_path / "out", group_pattern="(.*)", tolerated_share=0.5, max_megapixels=1.0)
    told = [*dataset.index()["source"], *(file for file, _ in dataset.refused)]
    there = [path.relative_to(raw).as_posix() for path in (raw / "images").rglob("*") if path.is_file()]
    assert sorted(told) == sorted(there)
    assert len(dataset.refused) > 15
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
