"""Reading a prepared set with our reader, without copies, and with other tools, as docs/prepared-data.md shows."""

import json
import os
import pickle
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from torch.utils.data import DataLoader

from pspnet.dataset.augmentation import Augmentation
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.dataset.store.shards import Record, ShardReader, ShardWriter, digests
from pspnet.dataset.training_samples import TrainingCrops
from pspnet.demo.streets import synthesize
from pspnet.stages import prepare
from pspnet.tracking.run import StageRun
from tests.parameters import ROOT, demo_params
from tests.raw.rawdata import encoded, noise
from tests.training.conftest import quiet

PAGE = ROOT / "docs/prepared-data.md"
UNREAD = 20_000_000  # bytes after the end of the picture, which no decoder reads


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty images from fifteen streets, forty with masks, in several shards."""
    folder = tmp_path_factory.mktemp("project")
    synthesize(folder / "data/raw", images=60, labeled=40, seed=0, tick=quiet)
    params = demo_params(prepare__shard_mb=1)
    raw, out = folder / "data/raw", folder / "data/prepared"
    prepare.run(
        params.dataset, params.prepare, raw=raw, out=out, checkpoints=folder / ".state", run=StageRun(), tick=quiet
    )
    assert len(PreparedDataset.open(out).shards) > 1
    return folder


@pytest.fixture
def prepared(project: Path) -> PreparedDataset:
    return PreparedDataset.open(project / "data/prepared")


def shown(heading: str) -> str:
    found = re.search(rf"^## {re.escape(heading)}\n```python\n(.*?)```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found, f"{PAGE} shows no code under '{heading}'"
    return found[1]


def as_shown(heading: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(project)
    names: dict[str, Any] = {}
    exec(shown(heading), names)
    return names


def one_sample(folder: Path, image: bytes, mask: bytes) -> ShardReader:
    writer = ShardWriter(folder / "shards", 10**9)
    writer.add(Record("a", "train", image, mask, 8, 12, "g", "a.png", digests(image, mask)[1].hex()))
    writer.close()
    return ShardReader(folder / "shards", [writer.shards[0].name])


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_sample_is_decoded_from_the_mapped_shard_without_a_copy(tmp_path: Path, kind: str) -> None:
    pixels, mask = noise(8, 12), np.ones((8, 12), np.uint8)
    reader = one_sample(tmp_path, encoded(pixels, kind) + bytes(UNREAD), encoded(mask) + bytes(UNREAD))
    reader.image(0, 0), reader.mask(0, 0)  # warm-up
    tracemalloc.start()
    try:
        image, same_mask = reader.image(0, 0), reader.mask(0, 0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < UNREAD / 10
    assert np.array_equal(same_mask, mask)
    assert kind == "JPEG" or np.array_equal(image, pixels)


@pytest.mark.e2e
def test_loader_processes_read_the_same_samples_and_receive_little_data(prepared: PreparedDataset) -> None:
    augmentation = Augmentation(96, 128, 1.0, 1.0, 10.0, 0.5, 0.5, 0.0, (1, 2, 3), 255)
    used = TrainingCrops(prepared.reader(), prepared.annotated("train"), augmentation, seed=0)
    keys = [(0, position) for position in range(len(used))]
    here = [used[key] for key in keys]
    assert len(pickle.dumps(used)) < 10_000  # albumentations alone takes 5 kB
    loader: DataLoader[Any] = DataLoader(
        used, batch_sampler=[[key] for key in keys], num_workers=1, multiprocessing_context="spawn"
    )
    for one, batch in zip(here, loader, strict=True):
        assert np.array_equal(one["image"], batch["image"][0])
        assert np.array_equal(one["mask"], batch["mask"][0])


@pytest.mark.e2e
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_index_reads_no_byte_of_an_image(prepared: PreparedDataset, tmp_path: Path) -> None:
    """Pages of a mapped file count toward the process's memory once they are read."""
    image = bytes(UNREAD)
    writer = ShardWriter(tmp_path / "shards", 10**9)
    for name in "abcde":
        writer.add(Record(name, "train", image, image, 1, 1, "g", name, name))
    writer.close()
    facts = json.loads((prepared.folder / "dataset.json").read_text())
    facts["shards"] = [shard._asdict() for shard in writer.shards]
    (tmp_path / "dataset.json").write_text(json.dumps(facts))
    code = """
import re, sys
from pathlib import Path
from pspnet.dataset.store.prepared import PreparedDataset
def peak():  # of this program alone: ru_maxrss starts with the parent's value
    return 1024 * int(re.search("VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
PreparedDataset.open(Path(sys.argv[1])).index()  # warm-up
before = peak()
index = PreparedDataset.open(Path(sys.argv[2])).index()
print(len(index), peak() - before)
"""
    words = [sys.executable, "-c", code, str(prepared.folder), str(tmp_path)]
    rows, grown = map(int, subprocess.run(words, capture_output=True, check=True, timeout=60).stdout.split())
    assert rows == 5
    assert grown < UNREAD / 2  # the shard is 200 MB


def test_our_reader_works_as_documented(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = as_shown("pspnet", project, monkeypatch)
    assert len(names["index"]) == 60
    assert (names["image"].shape, names["mask"].shape) == ((96, 128, 3), (96, 128))


def test_pandas_opens_the_shards(project: Path, prepared: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    table = as_shown("pandas", project, monkeypatch)["table"]
    expected = prepared.index()[["id", "split", "height", "width"]]
    pd.testing.assert_frame_equal(table.reset_index(drop=True), expected, check_dtype=False)


def test_pyarrow_opens_the_shards(project: Path, prepared: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    names, index = as_shown("pyarrow", project, monkeypatch), prepared.index()
    assert names["ids"] == index.loc[index["split"] == "test", "id"].tolist()
    assert np.array_equal(np.asarray(names["picture"]), prepared.reader().image(0, 0))


def test_duckdb_queries_the_shards_and_the_facts(
    project: Path, prepared: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = as_shown("DuckDB", project, monkeypatch)
    groups = prepared.index().groupby("split")["group"].nunique()
    expected = [(split, prepared.images[split], prepared.masks[split], groups[split]) for split in sorted(groups.index)]
    assert names["splits"].fetchall() == expected
    train, test = prepared.class_pixels["train"], prepared.class_pixels["test"]
    assert names["classes"].fetchall() == list(zip(prepared.classes, train, test, strict=True))


@pytest.mark.e2e
def test_hugging_face_datasets_open_the_shards(project: Path, prepared: PreparedDataset, tmp_path: Path) -> None:
    """The library reads its settings on import, so it runs in a separate process."""
    told = """
import json, numpy
print(json.dumps([list(samples["id"]), list(samples["split"]), test[0]["id"], numpy.asarray(picture).tolist(),
                  numpy.asarray(mask).tolist()]))
"""
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", shown("Hugging Face `datasets`") + told],
        cwd=project, env=os.environ | offline, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ids, splits, first, picture, mask = json.loads(done.stdout)
    index, reader = prepared.index(), prepared.reader()
    assert (ids, splits) == (index["id"].tolist(), index["split"].tolist())
    row = index[index["split"] == "test"].iloc[0]
    assert first == row.id
    assert np.array_equal(picture, reader.image(row.shard, row.row))
    assert np.array_equal(mask, reader.mask(row.shard, row.row))
