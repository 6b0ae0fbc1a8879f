"""Split the samples into pieces. The result of checking a piece is a single file, so a killed run can resume and
several machines can share the work.

A piece's file name combines its samples, rules and code with the stamps of its raw files, so the machine that created
it recognizes it by name. It contains digests of the raw files, so that a different machine, with different stamps, can
recognize it.
"""

import hashlib
import json
import os
import pickle
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Self

import filelock
import pyarrow as pa

from pspnet.dataset.store.shards import digests
from pspnet.errors import Problem
from pspnet.machine.code import CODE, code_digest
from pspnet.machine.outputs import whole_file
from pspnet.raw.files import RawFiles
from pspnet.raw.images import GLANCE_PX, Refused
from pspnet.raw.problems import Verdict
from pspnet.raw.sample import RawSample
from pspnet.raw.validation import CheckedSample, Rules

PIECE = 256  # samples
KEPT_FOLDERS = 3  # number of folders of failed runs that are kept
BATCH_BYTES = 2**24  # samples held in memory before a batch is written
PACKAGES = ("numpy", "pillow")

Tick = Callable[[int, int, str], None]

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "image": pa.large_binary(),  # null if the image is not used
        "mask": pa.large_binary(),
        "height": pa.int32(),
        "width": pa.int32(),
        "image_digest": pa.binary(32),  # digest of the image alone
        "digest": pa.binary(32),  # digest of the image and mask
        "glance": pa.binary(GLANCE_PX**2),
        "channel_sums": pa.list_(pa.int64(), 7),
        "classes": pa.list_(pa.uint8()),
        "class_pixels": pa.list_(pa.int64()),
        "verdicts": pa.string(),  # JSON
        "content": pa.binary(32),  # digest of all of the sample's raw files
    }
)


@dataclass(frozen=True)
class Piece:
    """Samples in packed form, because the paths of a million images would take a gigabyte."""

    packed: bytes
    count: int
    kind: str  # differs for different samples, rules or code
    stamps: str  # differs when a raw file seems to have changed
    bytes: int = 0  # size of the raw files

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.stamps}.arrow"

    @property
    def samples(self) -> list[RawSample]:
        return list(pickle.loads(zlib.decompress(self.packed)))  # packed by `of`, in this process or its parent

    @classmethod
    def of(cls, samples: Sequence[RawSample], kind: str, stamps: str, raw_bytes: int = 0) -> Self:
        return cls(zlib.compress(pickle.dumps(samples), 1), len(samples), kind, stamps, raw_bytes)


def cut(samples: Iterable[RawSample], files: RawFiles, rules: Rules) -> list[Piece]:
    """Cut the samples, in order, into pieces of PIECE samples."""
    facts = [rules, {name: version(name) for name in PACKAGES}, code_digest(CODE["prepare"])]
    settings, every = hashlib.sha256(repr(facts).encode()).hexdigest(), iter(samples)
    return [_piece(own, files, settings) for own in iter(lambda: list(islice(every, PIECE)), [])]


def _piece(samples: Sequence[RawSample], files: RawFiles, settings: str) -> Piece:
    kind, stamps, total = hashlib.sha256(settings.encode()), hashlib.sha256(), 0
    for sample in samples:
        own = [files.stamp(path) for path in sample.paths]
        kind.update(f"{sample!r}\n".encode())
        stamps.update(f"{[tuple(stamp) for stamp in own]}\n".encode())
        total += sum(stamp.size for stamp in own)
    return Piece.of(samples, kind.hexdigest()[:32], stamps.hexdigest()[:32], total)


def folder_of(pieces: Sequence[Piece], below: Path) -> Path:
    """Return the folder for these pieces. Concurrent runs with different data, rules or code use different folders."""
    names = "\n".join(piece.name for piece in pieces)
    return below / hashlib.sha256(names.encode()).hexdigest()[:16]


def take_over(pieces: Sequence[Piece], folder: Path) -> None:
    """Link pieces left by earlier, failed runs, because fixing a mistake leaves most data unchanged."""
    folder.mkdir(parents=True, exist_ok=True)
    others = _others(folder)
    for piece in pieces:
        for other in others[:KEPT_FOLDERS]:
            with suppress(OSError):  # that run may be succeeding right now and removing its folder
                if not (folder / piece.name).exists() and (other / piece.name).exists():
                    os.link(other / piece.name, folder / piece.name)
    _discard(others[KEPT_FOLDERS:])


def take_same(
    pieces: Sequence[Piece], folders: Sequence[Path], into: Path, files: RawFiles, max_bytes: int, tick: Tick
) -> list[Piece]:
    """Take pieces that were created elsewhere from identical raw files, and return the pieces still missing."""
    into.mkdir(parents=True, exist_ok=True)
    missing, done, total = [], 0, sum(piece.count for piece in pieces)
    for piece in pieces:
        if not (into / piece.name).exists() and not _is_taken(piece, folders, into, files, max_bytes):
            missing.append(piece)
        done += piece.count
        tick(done, total, "compared with the parts")
    return missing


def _is_taken(piece: Piece, folders: Sequence[Path], into: Path, files: RawFiles, max_bytes: int) -> bool:
    found = [path for folder in folders for path in sorted(folder.glob(f"{piece.kind}-*.arrow"))]
    if not found:
        return False
    contents = [content_of(sample, files, max_bytes) for sample in piece.samples]
    for path in found:
        if _contents_in(path) == contents:
            try:
                os.link(path, into / piece.name)
            except OSError:  # a different file system
                with whole_file(into / piece.name) as partial:
                    shutil.copyfile(path, partial)
            return True
    return False


def _contents_in(path: Path) -> list[bytes]:
    try:
        return [one for batch in batches(path, ["content"]) for one in batch.column("content").to_pylist()]
    except (OSError, pa.ArrowException):  # a truncated file
        return []


def content_of(sample: RawSample, files: RawFiles, max_bytes: int, known: Mapping[str, bytes] | None = None) -> bytes:
    """Return the digest of all files of a sample. `known` contains the digests of files that were already read."""
    digests = [(known or {}).get(path) or _content(path, files, max_bytes) for path in sample.paths]
    return hashlib.sha256(b"".join(digests)).digest()


def _content(path: str, files: RawFiles, max_bytes: int) -> bytes:
    try:
        return hashlib.sha256(files.read(path, max_bytes)).digest()
    except Refused as refused:
        return hashlib.sha256(refused.found.encode(errors="replace")).digest()


class HashingFiles(RawFiles):
    """The same files, with a digest of each file that was read."""

    def __init__(self, files: RawFiles) -> None:
        super().__init__(files.root)
        self._files = files
        self.digests: dict[str, bytes] = {}

    def read(self, path: str, max_bytes: int) -> bytes:
        data = self._files.read(path, max_bytes)
        self.digests[path] = hashlib.sha256(data).digest()
        return data


def discard(folder: Path) -> None:
    """Remove the folder of a finished run and anything that earlier runs left behind."""
    shutil.rmtree(folder)
    _discard(_others(folder))


def _others(folder: Path) -> list[Path]:
    """Return the folders of other runs, newest first."""
    others = [path for path in folder.parent.iterdir() if path.is_dir() and path != folder]
    return sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)


def _discard(folders: Sequence[Path]) -> None:
    """Remove the folders, except those in use. A run holds the lock on its folder."""
    for folder in folders:
        with suppress(filelock.Timeout), filelock.FileLock(folder.with_suffix(".lock"), blocking=False):
            shutil.rmtree(folder, ignore_errors=True)


def write(path: Path, rows: Iterable[dict[str, Any]], needed_bytes: int = 0) -> None:
    """Write the file of a piece."""
    with (
        whole_file(path, needed_bytes) as partial,
        pa.OSFile(str(partial), "wb") as file,
        pa.ipc.new_file(file, SCHEMA) as writer,
    ):
        held: list[dict[str, Any]] = []
        held_bytes = 0
        for row in rows:
            held.append(row)
            held_bytes += len(row["image"] or b"") + len(row["mask"] or b"")
            if held_bytes >= BATCH_BYTES:
                writer.write_batch(pa.RecordBatch.from_pylist(held, SCHEMA))
                held, held_bytes = [], 0
        if held:
            writer.write_batch(pa.RecordBatch.from_pylist(held, SCHEMA))


def row_of(checked: CheckedSample, content: bytes) -> dict[str, Any]:
    sample, image, mask = checked.sample, checked.image, checked.mask
    image_digest, both_digest = digests(image, mask) if image else (None, None)
    verdicts = [asdict(verdict) for verdict in checked.verdicts]
    return {
        "id": sample.id,
        "image": image,
        "mask": mask,
        "height": checked.height,
        "width": checked.width,
        "image_digest": image_digest,
        "digest": both_digest,
        "glance": checked.glance,
        "channel_sums": checked.channel_sums,
        "classes": list(checked.class_counts),
        "class_pixels": list(checked.class_counts.values()),
        "verdicts": json.dumps(verdicts) if verdicts else None,
        "content": content,
    }


def verdicts_in(text: str) -> list[Verdict]:
    """Return the verdicts in a row of a piece."""
    return [Verdict(**{**facts, "problem": Problem(**facts["problem"])}) for facts in json.loads(text)]


def batches(path: Path, columns: Sequence[str] = ()) -> Iterator[Any]:
    """Yield the record batches of a piece, with only these columns, or all columns if none are given."""
    options = pa.ipc.IpcReadOptions(included_fields=[SCHEMA.get_field_index(name) for name in columns])
    with pa.OSFile(str(path)) as file, pa.ipc.open_file(file, options=options) as reader:
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)
