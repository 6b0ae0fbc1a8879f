"""Finds the problems that `prepare` would find by reading the images and masks of a batch."""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from pspnet.checkout.arrivals import Arrivals
from pspnet.checkout.together import Together
from pspnet.raw.assembly import Pieces, contradiction, copy, digests_in
from pspnet.raw.duplicates import contradictions, copies
from pspnet.raw.images import Refused
from pspnet.raw.pieces import cut, verdicts_in
from pspnet.raw.problems import KEPT, Verdict, judge
from pspnet.raw.sample import RawSample
from pspnet.raw.validation import Rules
from pspnet.raw.workers import check_pieces

START_BYTES = 2**16  # enough to distinguish most images of the same size


def check_content(
    arrivals: Arrivals, together: Together, rules: Rules, folder: Path, tick: Callable[[int, int, str], None]
) -> list[Verdict]:
    """Verdicts on the content of the batch's files. Checked pieces are kept in `folder` and removed afterward."""
    samples = [*arrivals.samples, *_perhaps_copied(arrivals, together, rules.max_bytes)]
    pieces = cut(samples, together, rules)
    try:
        check_pieces(pieces, folder, together, rules, tick)
        return list(_verdicts(samples, len(arrivals.samples), Pieces(folder, pieces), together, rules))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _perhaps_copied(arrivals: Arrivals, together: Together, max_bytes: int) -> list[RawSample]:
    """The images in the raw data that may be identical to an image in the batch, because their first bytes match."""

    def start(sample: RawSample) -> bytes:
        path = Path(together.shown(sample.image))
        try:
            if not path.is_file():  # the image is in an archive
                return hashlib.sha256(together.read(sample.image, max_bytes)[:START_BYTES]).digest()
            with path.open("rb") as file:
                return hashlib.sha256(file.read(START_BYTES)).digest()
        except (Refused, OSError):
            return b""

    if not arrivals.same_size:
        return []
    starts = set(map(start, arrivals.samples)) - {b""}
    return [sample for sample in arrivals.same_size if start(sample) in starts]


def _verdicts(
    samples: Sequence[RawSample], mine: int, pieces: Pieces, together: Together, rules: Rules
) -> Iterator[Verdict]:  # fmt: skip
    """Verdicts on the batch, which is the first `mine` of the samples."""
    digests, both_digests = np.zeros((len(samples), 32), np.uint8), np.zeros((len(samples), 32), np.uint8)
    is_used, is_labeled = np.zeros(len(samples), bool), np.zeros(len(samples), bool)
    for first, batch in pieces.batches("image_digest", "digest", "classes", "verdicts"):
        places = slice(first, first + batch.num_rows)
        digests[places], both_digests[places] = digests_in(batch, "image_digest"), digests_in(batch, "digest")
        is_used[places] = batch.column("image_digest").is_valid().to_numpy(zero_copy_only=False)
        is_labeled[places] = [bool(own) for own in batch.column("classes").to_pylist()]
        for text in batch.column("verdicts").drop_null().to_pylist():
            yield from (one for one in verdicts_in(text) if one.problem.where in together.of_batch)
    for place, other in contradictions(digests, both_digests, is_used & is_labeled):
        verdict = judge(contradiction(samples[place], samples[other]), rules.policies)
        is_used[place] = verdict.outcome in KEPT
        if place < mine:
            yield verdict
    worth = np.where(is_used, np.arange(len(samples)) >= mine, -1)  # existing files are kept
    for place, kept in copies(digests, worth):
        if place < mine:
            where = "in the batch, too" if kept < mine else "already there"
            verdict = judge(copy(samples[place], samples[kept], where), rules.policies)
            yield Verdict(verdict.problem, "duplicate") if verdict.outcome == "quarantined" else verdict
