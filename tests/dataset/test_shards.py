import hashlib
import multiprocessing
import pickle
import resource
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pspnet.dataset.store.pixels import encode_mask
from pspnet.dataset.store.shards import SCHEMA, Record, ShardReader, ShardWriter, digests, open_shard
from pspnet.dataset.store.splits import stable_uniform
from tests.raw.rawdata import Pixels, encoded, noise

MASK = np.array([[0, 1, 255]], np.uint8)


def record(name: str, image: bytes = b"", mask: bytes | None = None) -> Record:
    return Record(name, "train", image, mask, 1, 3, "g", f"{name}.png", digests(image, mask)[1].hex())


def written(folder: Path, records: list[Record], shard_bytes: int) -> list[Path]:
    writer = ShardWriter(folder, shard_bytes)
    for one in records:
        writer.add(one)
    writer.close()
    assert [shard.bytes for shard in writer.shards] == [path.stat().st_size for path in sorted(folder.iterdir())]
    assert sum(shard.samples for shard in writer.shards) == len(records)
    return [folder / shard.name for shard in writer.shards]


def numbered(numbers: range, size: int = 1000) -> list[Record]:
    return [record(f"{number:06d}", np.random.default_rng(number).bytes(size)) for number in numbers]


def checksums(paths: list[Path]) -> set[str]:
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_columns_match_the_contract(tmp_path: Path) -> None:
    [path] = written(tmp_path / "s", [record("a", b"image", b"mask"), record("b", b"other")], 10**9)
    with pa.memory_map(str(path)) as file:
        reader = pa.ipc.open_file(file)
        assert reader.num_record_batches == 1
        table = reader.read_all()
    types = {"image": "large_binary", "mask": "large_binary", "height": "int32", "width": "int32"}
    names = ["id", "split", "image", "mask", "height", "width", "group", "source", "sha256"]
    assert [(f.name, str(f.type)) for f in table.schema] == [(name, types.get(name, "string")) for name in names]
    assert table.column("mask").to_pylist() == [b"mask", None]
    assert table.column("image").to_pylist() == [b"image", b"other"]


def test_equal_records_make_equal_bytes(tmp_path: Path) -> None:
    first = written(tmp_path / "one", numbered(range(300)), 20_000)
    second = written(tmp_path / "two", numbered(range(300)), 20_000)
    assert [path.name for path in first[:2]] == ["00000.arrow", "00001.arrow"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def ids_of(path: Path) -> list[str]:
    return open_shard(path).column("id").to_pylist()  # type: ignore[no-any-return]


def test_the_hash_of_an_id_decides_whether_a_shard_ends_there(tmp_path: Path) -> None:
    paths = written(tmp_path / "s", numbered(range(300)), 20_000)
    for path in paths:
        ends = [stable_uniform(name) < 1000 / 20_000 for name in ids_of(path)]
        assert not any(ends[:-1])
        assert ends[-1] or len(ends) == 80 or path == paths[-1]
    assert len(paths) > 10


def test_shards_have_the_requested_size_on_average(tmp_path: Path) -> None:
    paths = written(tmp_path / "s", numbered(range(5000), 100), 5000)
    assert sum(len(ids_of(path)) for path in paths) == 5000
    assert 5000 / len(paths) == pytest.approx(50, rel=0.2)


def test_a_shard_is_cut_at_four_times_the_requested_size(tmp_path: Path) -> None:
    without_end = [name for name in map("{:03d}".format, range(300)) if stable_uniform(name) > 0.1][:100]
    paths = written(tmp_path / "s", [record(name, bytes(10)) for name in without_end], 100)
    assert [len(ids_of(path)) for path in paths] == [40, 40, 20]


def test_inserting_images_rewrites_few_shards(tmp_path: Path) -> None:
    every = numbered(range(3000))
    before = written(tmp_path / "before", [*every[:1500], *every[1530:]], 20_000)
    after = written(tmp_path / "after", every, 20_000)
    assert len(before) > 100
    assert (
        len(checksums(after) - checksums(before)) <= 6
    )  # 30 consecutive images fill about two shards; a forced cut moves a few more


def test_an_image_larger_than_a_shard_gets_its_own_shard(tmp_path: Path) -> None:
    records = [record("a", bytes(10)), record("b", bytes(5000)), record("c", bytes(10))]
    paths = written(tmp_path / "s", records, 1000)
    assert [len(ids_of(path)) for path in paths] == [2, 1]


def test_moving_bytes_from_image_to_mask_changes_the_digest() -> None:
    assert digests(b"ab", b"c")[1] != digests(b"a", b"bc")[1]
    assert digests(b"a", None)[1] == hashlib.sha256(b"\0\0\0\0\0\0\0\1a").digest()


def test_reading_a_shard_copies_nothing(tmp_path: Path) -> None:
    [path] = written(tmp_path / "s", [record("a", bytes(10_000_000))], 10**9)
    before = pa.total_allocated_bytes()
    batch = open_shard(path)
    assert batch.column("image")[0].as_buffer().size == 10_000_000
    assert pa.total_allocated_bytes() - before < 10_000


@pytest.fixture
def shards(tmp_path: Path) -> ShardReader:
    """Create three shards with two samples each."""
    names = []
    for shard in range(3):
        pair = [record(f"{n}", encoded(noise(1, 3, n)), encode_mask(MASK)) for n in (2 * shard, 2 * shard + 1)]
        [path] = written(tmp_path / f"{shard}", pair, 10**9)
        names.append(str(path.relative_to(tmp_path)))
    return ShardReader(tmp_path, names)


def test_image_and_mask_are_found_by_shard_and_row(shards: ShardReader) -> None:
    for shard in range(3):
        for row in range(2):
            assert np.array_equal(shards.image(shard, row), noise(1, 3, 2 * shard + row))
            assert np.array_equal(shards.mask(shard, row), MASK)


def test_a_pickled_reader_is_small_and_reads(shards: ShardReader) -> None:
    shards.image(0, 0)
    pickled = pickle.dumps(shards)
    assert len(pickled) < 500
    assert np.array_equal(pickle.loads(pickled).image(2, 1), noise(1, 3, 5))


def read(shards: ShardReader, place: tuple[int, int]) -> Pixels:
    return shards.image(*place)


@pytest.mark.e2e
def test_other_processes_read_the_same_pixels(shards: ShardReader) -> None:
    shards.image(0, 0)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        image = pool.apply(read, (shards, (1, 0)))
    assert np.array_equal(image, noise(1, 3, 2))


def test_shards_can_outnumber_the_files_that_can_be_open(tmp_path: Path) -> None:
    paths = written(tmp_path / "s", [record(f"{n:03d}", encoded(noise(1, 3, n))) for n in range(100)], 1)
    assert len(paths) == 100
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        reader = ShardReader(tmp_path / "s", [path.name for path in paths])
        assert all(reader.image(shard, 0).shape == (1, 3, 3) for shard in range(100))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_every_column_is_a_field_of_a_record() -> None:
    assert list(Record.__dataclass_fields__) == SCHEMA.names
