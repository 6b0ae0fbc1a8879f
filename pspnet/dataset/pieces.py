"""Samples checked piece by piece, over processes: a piece is a file, so that a run that was killed goes on, and so that
any number of machines can share the work.
"""

import hashlib
import json
import os
import pickle
import shutil
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from signal import SIG_IGN, SIGINT, SIGKILL, signal
from typing import Any, Self

import filelock
import pyarrow as pa

from pspnet.dataset.images import GLANCE_PX
from pspnet.dataset.problems import Told, judged
from pspnet.dataset.raw import RawFiles
from pspnet.dataset.raw_samples import RawSample
from pspnet.dataset.shards import digests
from pspnet.dataset.validation import Checked, Rules, check
from pspnet.errors import Problem
from pspnet.outputs import whole_file
from pspnet.process import die_with_parent

PIECE = 256  # samples
KEPT = 3  # folders of runs that have not ended well
PROCESS_BYTES = 2**25  # of raw files: for fewer one more process is not worth its start
BATCH_BYTES = 2**24  # held by a process before they are written
POLL_SECONDS = 0.2
PACKAGES = ("numpy", "pillow")
CODE = Path(__file__).parent  # layouts, masks and shapes too decide what is in a piece

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
        "channel_sums": pa.list_(pa.int64(), 6),
        "classes": pa.list_(pa.uint8()),
        "class_pixels": pa.list_(pa.int64()),
        "told": pa.string(),  # JSON
    }
)


@dataclass(frozen=True)
class Piece:
    """Its samples are packed: of a million images their paths alone would take a gigabyte."""

    packed: bytes
    count: int
    name: str  # of its file; other samples, rules or code make another
    bytes: int  # of the raw files
    changed: float  # when the newest of them was

    @property
    def samples(self) -> list[RawSample]:
        return list(pickle.loads(zlib.decompress(self.packed)))  # what `of` has packed, in this process or its parent

    @classmethod
    def of(cls, samples: Sequence[RawSample], name: str, raw_bytes: int = 0, changed: float = 0.0) -> Self:
        return cls(zlib.compress(pickle.dumps(samples), 1), len(samples), name, raw_bytes, changed)


def cut(samples: Iterable[RawSample], files: RawFiles, rules: Rules) -> list[Piece]:
    settings = hashlib.sha256(repr([rules, {name: version(name) for name in PACKAGES}]).encode())
    for path in sorted(CODE.rglob("*.py")):
        settings.update(path.read_bytes())
    every = iter(samples)
    return [_piece(own, files, settings.hexdigest()) for own in iter(lambda: list(islice(every, PIECE)), [])]


def _piece(samples: Sequence[RawSample], files: RawFiles, settings: str) -> Piece:
    name, total, changed = hashlib.sha256(settings.encode()), 0, 0.0
    for sample in samples:
        stamps = [files.stamp(path) for path in (sample.image, *(sample.mask.paths if sample.mask else ()))]
        sizes = [size for size, _ in stamps]
        total, changed = total + sum(sizes), max(changed, *(when for _, when in stamps))
        name.update(f"{sample!r} {sizes}\n".encode())
    return Piece.of(samples, f"{name.hexdigest()[:32]}.arrow", total, changed)


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
                if not (folder / piece.name).exists() and is_fresh(other / piece.name, piece):
                    os.link(other / piece.name, folder / piece.name)
    _discard(others[KEPT:])


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


class _Stopped(Exception):
    """The process that wanted it gives up."""


def check_pieces(
    wanted: Sequence[Piece], folder: Path, files: RawFiles, rules: Rules, tick: Callable[[int, int, str], None]
) -> None:
    """A file in the folder for each; those that are there and newer than what they were made from are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [piece for piece in wanted if not is_fresh(folder / piece.name, piece)]
    total, open_ = (sum(piece.count for piece in some) for some in (wanted, missing))
    processes = min(_most_processes(), 1 + sum(piece.bytes for piece in missing) // PROCESS_BYTES, len(missing))
    tick(total - open_, total, "")
    if processes > 1:
        _check_in_processes(missing, processes, folder, files, rules, lambda n: tick(total - open_ + n, total, ""))
        return
    done = total - open_
    for piece in missing:

        def count(name: str) -> None:
            nonlocal done
            done += 1
            tick(done, total, name)

        _check_piece(piece, folder, files, rules, count)


def is_fresh(path: Path, piece: Piece) -> bool:
    return path.exists() and path.stat().st_mtime >= piece.changed


def _most_processes() -> int:
    return int(os.environ.get("PSPNET_PREPARE_PROCESSES", "0")) or len(os.sched_getaffinity(0))


def _check_piece(piece: Piece, folder: Path, files: RawFiles, rules: Rules, tell: Callable[[str], None]) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        for sample in piece.samples:
            yield _row(check(sample, files=files, rules=rules))
            tell(sample.id)

    _write(folder / piece.name, rows())


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with whole_file(path) as partial, pa.OSFile(str(partial), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
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


def _row(checked: Checked) -> dict[str, Any]:
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
        "glance": checked.glance.tobytes(),
        "channel_sums": checked.channel_sums,
        "classes": list(checked.class_counts),
        "class_pixels": list(checked.class_counts.values()),
        "told": json.dumps(told) if told else None,
    }


def told_in(text: str) -> list[Told]:
    """What a row of a piece tells."""
    facts = json.loads(text)
    return [Told(Problem(**{key: one[key] for key in one if key != "outcome"}), one["outcome"]) for one in facts]


def _check_in_processes(
    wanted: Sequence[Piece], processes: int, folder: Path, files: RawFiles, rules: Rules, tick: Callable[[int], None]
) -> None:
    """Who breaks a process is looked at again with the pieces that were under way then, each in halves, by itself."""
    left, done = deque(wanted), 0
    while left:
        crew = _Crew(processes, folder, files, rules)
        under_way: dict[Future[None], Piece] = {}
        try:
            while (left or under_way) and not crew.is_broken:
                while left and len(under_way) < processes + 1:
                    piece = left.popleft()
                    under_way[crew.submit(piece)] = piece
                ended, _ = wait(under_way, POLL_SECONDS, FIRST_COMPLETED)
                tick(done + crew.count)
                for future in ended:
                    if crew.is_done(future):
                        del under_way[future]
        finally:
            crew.stop()
        done += crew.count
        for piece in under_way.values():
            _check_halves(piece, folder, files, rules)
            tick(done)


def _check_halves(piece: Piece, folder: Path, files: RawFiles, rules: Rules) -> None:
    crew = _Crew(1, folder, files, rules)
    try:
        crew.begin()
        future = crew.submit(piece)
        wait([future])
        if crew.is_done(future):
            return
    finally:
        crew.stop()
    samples = piece.samples
    if len(samples) == 1:
        problem = Problem(samples[0].image, "ends the process that decodes it", "an image that can be decoded",
                          "Export it again or remove it.", "unreadable")  # fmt: skip
        _write(folder / piece.name, [_row(Checked(samples[0], [judged(problem, rules.policies)]))])
        return
    middle = len(samples) // 2
    halves = [Piece.of(samples[:middle], f"0-{piece.name}"), Piece.of(samples[middle:], f"1-{piece.name}")]
    for half in halves:
        _check_halves(half, folder, files, rules)
    tables = (batch for half in halves for batch in batches(folder / half.name))
    _write(folder / piece.name, (row for batch in tables for row in batch.to_pylist()))
    for half in halves:
        (folder / half.name).unlink()


def batches(path: Path, columns: Sequence[str] = ()) -> Iterator[Any]:
    """Of a piece, one after the other; only these columns are read."""
    options = pa.ipc.IpcReadOptions(included_fields=[SCHEMA.get_field_index(name) for name in columns])
    with pa.OSFile(str(path)) as file, pa.ipc.open_file(file, options=options) as reader:
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


class _Crew:
    """Processes that check pieces, and stop when they are told to or when we are gone."""

    def __init__(self, processes: int, folder: Path, files: RawFiles, rules: Rules) -> None:
        context = get_context("spawn")  # a fork would take over locks of threads that it has not
        self._counter = context.Value("q", 0)
        self._pool = ProcessPoolExecutor(processes, context, _begin, (self._counter, folder, files, rules))
        self.is_broken = False

    @property
    def count(self) -> int:
        return int(self._counter.value)

    def begin(self) -> None:
        """An error if no process can be had: then no image would be to blame."""
        self._pool.submit(os.getpid).result()

    def submit(self, piece: Piece) -> Future[None]:
        return self._pool.submit(_work, piece)

    def is_done(self, future: Future[None]) -> bool:
        error = future.exception()
        if error and not isinstance(error, BrokenProcessPool):
            raise error
        self.is_broken = self.is_broken or error is not None
        return error is None

    def stop(self) -> None:
        count = self.count
        self._counter.value = -1 - 2**62
        self._pool.shutdown(cancel_futures=True)
        self._counter.value = count


def _begin(counter: Any, *own: Any) -> None:
    signal(SIGINT, SIG_IGN)  # Ctrl-C reaches every process of the terminal; who wants us decides
    die_with_parent(SIGKILL)
    _own.extend((counter, *own))


_own: list[Any] = []  # of a process: the counter, the folder, the files, the rules


def _work(piece: Piece) -> None:
    counter, folder, files, rules = _own

    def count(_: str) -> None:
        with counter.get_lock():
            if counter.value < 0:
                raise _Stopped
            counter.value += 1

    _check_piece(piece, folder, files, rules, count)
