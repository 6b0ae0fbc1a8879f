"""Samples in pieces, and what has been found out about a piece as a file, so that a run that was killed goes on, and so
that any number of machines can share the work.

A piece's file is named after its samples, rules and code, then after the stamps of its raw files: this machine knows it
again by its name. In it are digests of what was read: by them another machine, with other stamps, takes it.
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

from pspnet.dataset.images import GLANCE_PX, Refused
from pspnet.dataset.problems import Told
from pspnet.dataset.raw import RawFiles
from pspnet.dataset.raw_samples import RawSample
from pspnet.dataset.shards import digests
from pspnet.dataset.validation import Checked, Rules
from pspnet.errors import Problem
from pspnet.outputs import whole_file

PIECE = 256  # samples
KEPT = 3  # folders of runs that have not ended well
BATCH_BYTES = 2**24  # held by a process before they are written
PACKAGES = ("numpy", "pillow")
CODE = Path(__file__).parent  # layouts, masks and shapes too decide what is in a piece

Tick = Callable[[int, int, str], None]

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "image": pa.large_binary(),  # null: it is not used
        "mask": pa.large_binary(),
        "height": pa.int32(),
        "width": pa.int32(),
        "image_digest": pa.binary(32),  # of the image alone
        "digest": pa.binary(32),  # of image and mask
        "glance": pa.binary(GLANCE_PX**2),
        "channel_sums": pa.list_(pa.int64(), 7),
        "classes": pa.list_(pa.uint8()),
        "class_pixels": pa.list_(pa.int64()),
        "told": pa.string(),  # JSON
        "content": pa.binary(32),  # digest of all its raw files
    }
)


@dataclass(frozen=True)
class Piece:
    """Its samples are packed: of a million images their paths alone would take a gigabyte."""

    packed: bytes
    count: int
    kind: str  # other samples, rules or code make another
    stamps: str  # other raw files, to all appearance
    bytes: int = 0  # of the raw files

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.stamps}.arrow"

    @property
    def samples(self) -> list[RawSample]:
        return list(pickle.loads(zlib.decompress(self.packed)))  # what `of` has packed, in this process or its parent

    @classmethod
    def of(cls, samples: Sequence[RawSample], kind: str, stamps: str, raw_bytes: int = 0) -> Self:
        return cls(zlib.compress(pickle.dumps(samples), 1), len(samples), kind, stamps, raw_bytes)


def cut(samples: Iterable[RawSample], files: RawFiles, rules: Rules) -> list[Piece]:
    settings = hashlib.sha256(repr([rules, {name: version(name) for name in PACKAGES}]).encode())
    for path in sorted(CODE.rglob("*.py")):
        settings.update(path.read_bytes())
    every = iter(samples)
    return [_piece(own, files, settings.hexdigest()) for own in iter(lambda: list(islice(every, PIECE)), [])]


def _piece(samples: Sequence[RawSample], files: RawFiles, settings: str) -> Piece:
    kind, stamps, total = hashlib.sha256(settings.encode()), hashlib.sha256(), 0
    for sample in samples:
        own = [files.stamp(path) for path in sample.paths]
        kind.update(f"{sample!r}\n".encode())
        stamps.update(f"{[tuple(stamp) for stamp in own]}\n".encode())
        total += sum(stamp.size for stamp in own)
    return Piece.of(samples, kind.hexdigest()[:32], stamps.hexdigest()[:32], total)


def folder_of(pieces: Sequence[Piece], below: Path) -> Path:
    """Runs on other data, rules or code have others, and may work at the same time."""
    names = "\n".join(piece.name for piece in pieces)
    return below / hashlib.sha256(names.encode()).hexdigest()[:16]


def take_over(pieces: Sequence[Piece], folder: Path) -> None:
    """What runs before this one have left, which did not end well: most data are the same after a mistake is mended."""
    folder.mkdir(parents=True, exist_ok=True)
    others = _others(folder)
    for piece in pieces:
        for other in others[:KEPT]:
            with suppress(OSError):  # it may end well just now, and be removed
                if not (folder / piece.name).exists() and (other / piece.name).exists():
                    os.link(other / piece.name, folder / piece.name)
    _discard(others[KEPT:])


def take_same(
    pieces: Sequence[Piece], folders: Sequence[Path], into: Path, files: RawFiles, max_bytes: int, tick: Tick
) -> list[Piece]:
    """Those that were made elsewhere, of raw files of the same content; returns the pieces that are still missing."""
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
            except OSError:  # another file system
                with whole_file(into / piece.name) as partial:
                    shutil.copyfile(path, partial)
            return True
    return False


def _contents_in(path: Path) -> list[bytes]:
    try:
        return [one for batch in batches(path, ["content"]) for one in batch.column("content").to_pylist()]
    except (OSError, pa.ArrowException):  # cut off
        return []


def content_of(sample: RawSample, files: RawFiles, max_bytes: int, known: Mapping[str, bytes] | None = None) -> bytes:
    """A digest of all the files of a sample; `known`: of those that have been read already."""
    digests = [(known or {}).get(path) or _content(path, files, max_bytes) for path in sample.paths]
    return hashlib.sha256(b"".join(digests)).digest()


def _content(path: str, files: RawFiles, max_bytes: int) -> bytes:
    try:
        return hashlib.sha256(files.read(path, max_bytes)).digest()
    except Refused as refused:
        return hashlib.sha256(refused.found.encode(errors="replace")).digest()


class Remembered(RawFiles):
    """The same files, and a digest of each that was read."""

    def __init__(self, files: RawFiles) -> None:
        self.__dict__.update(files.__dict__)
        self.digests: dict[str, bytes] = {}

    def read(self, path: str, max_bytes: int) -> bytes:
        data = super().read(path, max_bytes)
        self.digests[path] = hashlib.sha256(data).digest()
        return data


def discard(folder: Path) -> None:
    """Nobody needs it any more, nor what runs before this one have left."""
    shutil.rmtree(folder)
    _discard(_others(folder))


def _others(folder: Path) -> list[Path]:
    """The newest first."""
    others = [path for path in folder.parent.iterdir() if path.is_dir() and path != folder]
    return sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)


def _discard(folders: Sequence[Path]) -> None:
    """But those in which a run is at work, which holds its lock."""
    for folder in folders:
        with suppress(filelock.Timeout), filelock.FileLock(folder.with_suffix(".lock"), blocking=False):
            shutil.rmtree(folder, ignore_errors=True)


def write(path: Path, rows: Iterable[dict[str, Any]], needed_bytes: int = 0) -> None:
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


def row_of(checked: Checked, content: bytes) -> dict[str, Any]:
    sample, image, mask = checked.sample, checked.image, checked.mask
    image_digest, both_digest = digests(image, mask) if image else (None, None)
    told = [{**asdict(told.problem), "outcome": told.outcome} for told in checked.told]
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
        "told": json.dumps(told) if told else None,
        "content": content,
    }


def told_in(text: str) -> list[Told]:
    """What a row of a piece tells."""
    facts = json.loads(text)
    return [Told(Problem(**{key: one[key] for key in one if key != "outcome"}), one["outcome"]) for one in facts]


def batches(path: Path, columns: Sequence[str] = ()) -> Iterator[Any]:
    """Of a piece, one after the other; only these columns are read."""
    options = pa.ipc.IpcReadOptions(included_fields=[SCHEMA.get_field_index(name) for name in columns])
    with pa.OSFile(str(path)) as file, pa.ipc.open_file(file, options=options) as reader:
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)
