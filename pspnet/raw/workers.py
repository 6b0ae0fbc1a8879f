"""Check pieces in this process or in worker processes, any of which can die."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path
from signal import SIG_IGN, SIGINT, SIGKILL, signal
from typing import Any

from pspnet.errors import Problem
from pspnet.machine.process import die_with_parent
from pspnet.raw.files import RawFiles
from pspnet.raw.images import limited_pillow
from pspnet.raw.pieces import HashingFiles, Piece, batches, content_of, row_of, write
from pspnet.raw.problems import judge
from pspnet.raw.sample import RawSample
from pspnet.raw.validation import CheckedSample, Rules, check

PROCESS_BYTES = 2**25  # bytes of raw files per process; starting a process is not worth it for less
POLL_SECONDS = 0.2


class _Stopped(Exception):
    """Raised in a worker when the parent has given up."""


def check_pieces(
    wanted: Sequence[Piece], folder: Path, files: RawFiles, rules: Rules, tick: Callable[[int, int, str], None]
) -> None:
    """Write one file per piece into the folder, and keep the files that are already there."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [piece for piece in wanted if not (folder / piece.name).exists()]
    total, left = (sum(piece.count for piece in pieces) for pieces in (wanted, missing))
    processes = min(_most_processes(), 1 + sum(piece.bytes for piece in missing) // PROCESS_BYTES, len(missing))
    tick(total - left, total, "")
    if processes > 1:
        _check_in_processes(missing, processes, folder, files, rules, lambda n: tick(total - left + n, total, ""))
        return
    done = total - left
    for piece in missing:

        def count(name: str) -> None:
            nonlocal done
            done += 1
            tick(done, total, name)

        before = done
        try:
            _check_piece(piece, folder, files, rules, count)
        except MemoryError:
            _check_halves(piece, folder, files, rules)
            done = before + piece.count


def _most_processes() -> int:
    return int(os.environ.get("PSPNET_PREPARE_PROCESSES", "0")) or len(os.sched_getaffinity(0))


def _check_piece(piece: Piece, folder: Path, files: RawFiles, rules: Rules, tell: Callable[[str], None]) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        with limited_pillow(rules.max_pixels):  # set once per piece
            for sample in piece.samples:
                read = HashingFiles(files)
                checked = check(sample, files=read, rules=rules)
                yield row_of(checked, content_of(sample, files, rules.max_bytes, read.digests))
                tell(sample.id)

    write(folder / piece.name, rows(), piece.bytes)


def _check_in_processes(
    wanted: Sequence[Piece], processes: int, folder: Path, files: RawFiles, rules: Rules, tick: Callable[[int], None]
) -> None:
    """If a process dies or runs out of memory, check its pieces again one by one, halving them to find the bad
    sample.
    """
    left, done = deque(wanted), 0
    while left:
        workers = _Workers(processes, folder, files, rules)
        under_way: dict[Future[None], Piece] = {}
        try:
            while (left or under_way) and not workers.is_broken:
                while left and len(under_way) < processes + 1:
                    piece = left.popleft()
                    under_way[workers.submit(piece)] = piece
                ended, _ = wait(under_way, POLL_SECONDS, FIRST_COMPLETED)
                tick(done + workers.count)
                for future in ended:
                    if workers.is_done(future):
                        del under_way[future]
        finally:
            workers.stop()
        done += workers.count
        for piece in under_way.values():
            _check_halves(piece, folder, files, rules)
            tick(done)


def _check_halves(piece: Piece, folder: Path, files: RawFiles, rules: Rules) -> None:
    workers = _Workers(1, folder, files, rules)
    try:
        workers.begin()
        future = workers.submit(piece)
        wait([future])
        if workers.is_done(future):
            return
    finally:
        workers.stop()
    samples = piece.samples
    if len(samples) == 1:
        [sample] = samples
        problem = _problem(sample, future.exception())
        checked = CheckedSample(sample, [judge(problem, rules.policies)])
        write(folder / piece.name, [row_of(checked, content_of(sample, files, rules.max_bytes))])
        return
    middle = len(samples) // 2
    halves = [
        Piece.of(own, f"{number}-{piece.kind}", piece.stamps)
        for number, own in enumerate((samples[:middle], samples[middle:]))
    ]
    for half in halves:
        _check_halves(half, folder, files, rules)
    tables = (batch for half in halves for batch in batches(folder / half.name))
    write(folder / piece.name, (row for batch in tables for row in batch.to_pylist()))
    for half in halves:
        (folder / half.name).unlink()


def _problem(sample: RawSample, error: BaseException | None) -> Problem:
    expected = "an image that can be decoded"
    if isinstance(error, MemoryError):
        fix = "Cut it into tiles, remove it, or lower prepare.max_megapixels."
        where = str(error) or sample.image
        return Problem(where, "needs more memory than there is", expected, fix, "unreadable")
    fix = "Export it again or remove it."
    return Problem(sample.image, "crashes the process that decodes it", expected, fix, "unreadable")


class _Workers:
    """Processes that check pieces until told to stop or until this process ends."""

    def __init__(self, processes: int, folder: Path, files: RawFiles, rules: Rules) -> None:
        context = get_context("spawn")  # a fork would copy locks that are held by threads it does not have
        self._counter = context.Value("q", 0)
        self._pool = ProcessPoolExecutor(processes, context, _begin, (self._counter, folder, files, rules))
        self.is_broken = False

    @property
    def count(self) -> int:
        return int(self._counter.value)

    def begin(self) -> None:
        """Raise if no process can start, so that no image gets the blame."""
        self._pool.submit(os.getpid).result()

    def submit(self, piece: Piece) -> Future[None]:
        return self._pool.submit(_work, piece)

    def is_done(self, future: Future[None]) -> bool:
        error = future.exception()
        if error and not isinstance(error, BrokenProcessPool | MemoryError):
            raise error
        self.is_broken = self.is_broken or error is not None
        return error is None

    def stop(self) -> None:
        count = self.count
        self._counter.value = -1 - 2**62
        self._pool.shutdown(cancel_futures=True)
        self._counter.value = count


def _begin(counter: Any, *own: Any) -> None:
    signal(SIGINT, SIG_IGN)  # Ctrl-C reaches every process in the terminal, but the parent decides when to stop
    parent = parent_process()
    assert parent
    die_with_parent(SIGKILL, parent.pid)
    _own.extend((counter, *own))


_own: list[Any] = []  # set in a worker: the counter, the folder, the files, the rules


def _work(piece: Piece) -> None:
    counter, folder, files, rules = _own

    def count(_: str) -> None:
        with counter.get_lock():
            if counter.value < 0:
                raise _Stopped
            counter.value += 1

    _check_piece(piece, folder, files, rules, count)
