"""Checked pieces -> the prepared dataset: decide which samples go into which split, then write the shards."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pspnet.config.prepare import PrepareParams, ProblemsParams
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.dataset.store.shards import Record, ShardWriter
from pspnet.dataset.store.splits import Split
from pspnet.errors import Problem
from pspnet.raw.classes import IGNORE
from pspnet.raw.duplicates import RANK, contradictions, copies, hashes_of, look_alikes, really_alike, repeated
from pspnet.raw.images import GLANCE_PX
from pspnet.raw.inventory import RawDataset
from pspnet.raw.pieces import Piece, batches, verdicts_in
from pspnet.raw.problems import KEPT, Outcome, Verdict, judge
from pspnet.raw.sample import RawSample
from pspnet.raw.splitting import assign_splits, chosen_masks, missing_masks
from pspnet.raw.summary import Summary


@dataclass
class Decisions:
    """What happens to each sample. Lists and arrays are indexed by the sample's position in the raw dataset."""

    splits: list[Split]
    is_used: NDArray[np.bool_]
    has_mask: NDArray[np.bool_]
    verdicts: list[Verdict] = field(default_factory=list)
    # held-out images that look like another image in their split
    repeated: dict[Split, int] = field(default_factory=dict)

    @cached_property
    def ranks(self) -> NDArray[np.int64]:
        return np.array([RANK[split] for split in self.splits], np.int64)


class Pieces:
    """The files of checked samples, read in the order of the pieces."""

    def __init__(self, folder: Path, pieces: Sequence[Piece]) -> None:
        self._paths = [folder / piece.name for piece in pieces]

    def batches(self, *columns: str) -> Iterator[tuple[int, Any]]:
        """Yield (index of the first sample, pyarrow.RecordBatch)."""
        place = 0
        for path in self._paths:
            for batch in batches(path, columns):
                yield place, batch
                place += batch.num_rows


def decide(raw: RawDataset, pieces: Pieces, prepare: PrepareParams, labeled_fraction: float) -> Decisions:
    """Assign splits, leave out copies and look-alikes, and keep a fraction of the training masks."""
    verdicts: list[Verdict] = []
    digests, both_digests = np.zeros((raw.count, 32), np.uint8), np.zeros((raw.count, 32), np.uint8)
    is_used, has_mask = np.zeros(raw.count, bool), np.zeros(raw.count, bool)
    hashes = np.zeros((raw.count, 32), np.uint8)
    classes_in: dict[str, Counter[int]] = {}
    samples = raw.samples
    for first, batch in pieces.batches("image_digest", "digest", "glance", "classes", "verdicts"):
        places = slice(first, first + batch.num_rows)
        hashes[places] = hashes_of(_glances(batch))
        is_used[places] = batch.column("image_digest").is_valid().to_numpy(zero_copy_only=False)
        digests[places] = digests_in(batch, "image_digest")
        both_digests[places] = digests_in(batch, "digest")
        for place, own in enumerate(batch.column("classes").to_pylist(), start=first):
            sample = next(samples)
            has_mask[place] = bool(own)
            if prepare.split_by == "stratified" and own:
                classes_in.setdefault(sample.group, Counter()).update(k for k in own if k != IGNORE)
        verdicts += [one for text in batch.column("verdicts").drop_null().to_pylist() for one in verdicts_in(text)]
    stratified = classes_in if prepare.split_by == "stratified" else None
    split_of, torn = assign_splits(raw.samples, prepare, stratified)
    splits = [split_of[sample.group] for sample in raw.samples]
    has_mask &= np.array([split != "unlabeled" for split in splits], bool)  # a layout can put images with masks there
    decisions = Decisions(splits, is_used, has_mask, [*torn, *verdicts])
    _leave_out_contradictions(decisions, raw, digests, both_digests, prepare.problems)
    _leave_out_copies(decisions, raw, digests, prepare.problems)
    _leave_out_look_alikes(decisions, raw, hashes, pieces, prepare.problems)
    marks = repeated(hashes, np.where(decisions.is_used, decisions.ranks, -1))
    decisions.repeated = dict(Counter(splits[place] for place in np.flatnonzero(marks).tolist()))
    if labeled_fraction < 1:
        _keep_masks(decisions, raw, labeled_fraction)
    return decisions


def lacking_masks(raw: RawDataset, decisions: Decisions) -> list[Problem]:
    """Return a problem if train, val or test has no usable mask."""
    is_labeled = decisions.is_used & decisions.has_mask
    return missing_masks(
        (decisions.splits[place], sample.group) for place, sample in enumerate(raw.samples) if is_labeled[place]
    )


def digests_in(batch: Any, column: str) -> NDArray[np.uint8]:
    """Return the digests in a column: (N, 32), with zeros where there is no digest."""
    data = b"".join(batch.column(column).fill_null(bytes(32)).to_pylist())
    return np.frombuffer(data, np.uint8).reshape(-1, 32)


def _samples(raw: RawDataset, places: Iterable[int]) -> dict[int, RawSample]:
    wanted = set(places)
    return {place: sample for place, sample in enumerate(raw.samples) if place in wanted} if wanted else {}


def _glances(batch: Any) -> NDArray[np.uint8]:
    data = b"".join(batch.column("glance").to_pylist())
    return np.frombuffer(data, np.uint8).reshape(-1, GLANCE_PX, GLANCE_PX)


def contradiction(own: RawSample, other: RawSample) -> Problem:
    """Return the problem that two samples have the same image but different masks."""
    masks = " and ".join(sample.mask.path for sample in (own, other) if sample.mask)
    found = f"is the same image as {other.image}, but their masks differ ({masks})"
    fix = "Keep the right mask, and remove the other image with its mask."
    return Problem(own.image, found, "one mask for an image", fix, "differing_masks")


def copy(own: RawSample, kept: RawSample, where: str) -> Problem:
    """Return the problem that two samples have the same image."""
    found = f"is the same image as {kept.image} ({where})"
    return Problem(own.image, found, "each image once", "Remove one of them.", "duplicate")


def _leave_out_contradictions(
    decisions: Decisions, raw: RawDataset, digests: NDArray[np.uint8], both_digests: NDArray[np.uint8],
    policies: ProblemsParams,
) -> None:  # fmt: skip
    pairs = contradictions(digests, both_digests, decisions.is_used & decisions.has_mask)
    samples = _samples(raw, chain.from_iterable(pairs))
    for place, other in pairs:
        verdict = judge(contradiction(samples[place], samples[other]), policies)
        decisions.verdicts.append(verdict)
        if verdict.outcome not in KEPT:
            decisions.is_used[place] = False


def _leave_out_copies(
    decisions: Decisions, raw: RawDataset, digests: NDArray[np.uint8], policies: ProblemsParams
) -> None:
    worth = len(RANK) * decisions.has_mask + decisions.ranks
    pairs = copies(digests, np.where(decisions.is_used, worth, -1))
    samples = _samples(raw, chain.from_iterable(pairs))
    for place, kept in pairs:
        where = f"this one is in {decisions.splits[place]}, the other in {decisions.splits[kept]}"
        _leave_out(decisions, place, copy(samples[place], samples[kept], where), policies)


def _leave_out_look_alikes(
    decisions: Decisions, raw: RawDataset, hashes: NDArray[np.uint8], pieces: Pieces, policies: ProblemsParams
) -> None:
    pairs = look_alikes(hashes, np.where(decisions.is_used, decisions.ranks, -1))
    wanted = {place for pair in pairs for place in pair}
    glances: dict[int, NDArray[np.uint8]] = {}
    for first, batch in pieces.batches("glance") if wanted else ():
        own = [place for place in range(first, first + batch.num_rows) if place in wanted]
        if own:
            every = _glances(batch)
            glances |= {place: every[place - first].copy() for place in own}
    alike = sorted(really_alike(pairs, glances).items())
    samples = _samples(raw, chain.from_iterable(alike))
    for place, kept in alike:
        where = f"this one is in {decisions.splits[place]}, the other in {decisions.splits[kept]}"
        found = f"looks like {samples[kept].image} ({where})"
        fix = (
            "Put both into one group (dataset.group_pattern), or leave this one out "
            "(prepare.problems.near_duplicate: quarantine)."
        )
        expected = "val and test images that were not trained on"
        problem = Problem(samples[place].image, found, expected, fix, "near_duplicate")
        _leave_out(decisions, place, problem, policies)


def _leave_out(decisions: Decisions, place: int, problem: Problem, policies: ProblemsParams) -> None:
    verdict = judge(problem, policies)
    if verdict.outcome == "quarantined":
        verdict = Verdict(problem, "duplicate")
    decisions.verdicts.append(verdict)
    if verdict.outcome not in KEPT:
        decisions.is_used[place] = False


def _keep_masks(decisions: Decisions, raw: RawDataset, fraction: float) -> None:
    own = (decisions.ranks == RANK["train"]) & decisions.is_used & decisions.has_mask
    ids = {place: sample.id for place, sample in enumerate(raw.samples) if own[place]}
    chosen = chosen_masks(ids.values(), fraction)
    for place, name in ids.items():
        decisions.has_mask[place] = name in chosen


def assemble(
    raw: RawDataset, pieces: Pieces, decisions: Decisions, outcomes: Mapping[Outcome, int], prepare: PrepareParams,
    folder: Path,
) -> PreparedDataset:  # fmt: skip
    """Write the shards of the used samples into `folder` and return the dataset. The caller writes `dataset.json`."""
    writer, summary = ShardWriter(folder / "shards", prepare.shard_mb * 10**6), Summary(raw.rules.classes)
    samples = raw.samples
    for first, batch in pieces.batches():
        columns = {name: batch.column(name) for name in batch.schema.names}
        for row in range(batch.num_rows):
            place, sample = first + row, next(samples)
            if not decisions.is_used[place]:
                continue
            own = {name: column[row].as_py() for name, column in columns.items() if name not in ("glance", "verdicts")}
            has_mask = bool(decisions.has_mask[place])
            assert own["id"] == sample.id
            record = Record(
                id=sample.id,
                split=decisions.splits[place],
                image=own["image"],
                mask=own["mask"] if has_mask else None,
                height=own["height"],
                width=own["width"],
                group=sample.group,
                source=sample.image,
                sha256=own["digest" if has_mask else "image_digest"].hex(),
            )
            writer.add(record)
            counts = dict(zip(own["classes"], own["class_pixels"], strict=True))
            summary.add(record, own["channel_sums"], counts)
    writer.close()
    return summary.dataset(folder, writer.shards, outcomes)
