"""Checked pieces -> the prepared dataset: what is used and where, then shards."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pspnet.config.prepare import PrepareParams, ProblemsParams
from pspnet.dataset.classes import IGNORE, Classes
from pspnet.dataset.duplicates import RANK, copies, hashes_of, look_alikes, really_alike
from pspnet.dataset.images import GLANCE_PX
from pspnet.dataset.pieces import Piece, batches, told_in
from pspnet.dataset.prepared import PreparedDataset
from pspnet.dataset.problems import KEPT, Outcome, Told, judged
from pspnet.dataset.raw_samples import RawSample
from pspnet.dataset.samples import Split
from pspnet.dataset.shards import Record, ShardWriter
from pspnet.dataset.splits import assign_splits, chosen_masks
from pspnet.dataset.summary import Summary
from pspnet.errors import Problem


@dataclass
class Decisions:
    """By place of a sample."""

    splits: list[Split]
    is_used: NDArray[np.bool_]
    has_mask: NDArray[np.bool_]
    told: list[Told] = field(default_factory=list)


class Pieces:
    """The files of checked samples, in their order."""

    def __init__(self, folder: Path, pieces: Sequence[Piece]) -> None:
        self._paths = [folder / piece.name for piece in pieces]

    def batches(self, *columns: str) -> Iterator[tuple[int, Any]]:
        """(place of the first sample, a pyarrow.RecordBatch)"""
        place = 0
        for path in self._paths:
            for batch in batches(path, columns):
                yield place, batch
                place += batch.num_rows


def decide(samples: Sequence[RawSample], pieces: Pieces, prepare: PrepareParams, labelled_fraction: float) -> Decisions:
    told: list[Told] = []
    digests: list[bytes | None] = []
    has_mask = np.zeros(len(samples), bool)
    hashes = np.zeros((len(samples), 32), np.uint8)
    classes_in: dict[str, Counter[int]] = {}
    for first, batch in pieces.batches("image_digest", "glance", "classes", "told"):
        digests += batch.column("image_digest").to_pylist()
        hashes[first : first + batch.num_rows] = hashes_of(_glances(batch))
        for place, own in enumerate(batch.column("classes").to_pylist(), start=first):
            has_mask[place] = bool(own)
            if prepare.split_by == "stratified" and own:
                classes_in.setdefault(samples[place].group, Counter()).update(k for k in own if k != IGNORE)
        told += [one for text in batch.column("told").drop_null().to_pylist() for one in told_in(text)]
    stratified = classes_in if prepare.split_by == "stratified" else None
    split_of, torn = assign_splits(samples, prepare, stratified)
    splits = [split_of[sample.group] for sample in samples]
    has_mask &= np.array([split != "unlabeled" for split in splits], bool)  # a layout may say so of images with masks
    decisions = Decisions(splits, np.array([one is not None for one in digests], bool), has_mask, [*torn, *told])
    _leave_out_copies(decisions, samples, digests, prepare.problems)
    _leave_out_look_alikes(decisions, samples, hashes, pieces, prepare.problems)
    if labelled_fraction < 1:
        _keep_masks(decisions, samples, labelled_fraction)
    return decisions


def _glances(batch: Any) -> NDArray[np.uint8]:
    data = b"".join(batch.column("glance").to_pylist())
    return np.frombuffer(data, np.uint8).reshape(-1, GLANCE_PX, GLANCE_PX)


def _leave_out_copies(
    decisions: Decisions, samples: Sequence[RawSample], digests: Sequence[bytes | None], policies: ProblemsParams
) -> None:
    worth = [
        (int(mask), RANK[split]) for mask, split in zip(decisions.has_mask.tolist(), decisions.splits, strict=True)
    ]
    for place, kept in copies(digests, worth):
        where = f"in {decisions.splits[place]}, that in {decisions.splits[kept]}"
        problem = Problem(samples[place].image, f"is the same image as {samples[kept].image} ({where})",
                          "each image once", "Remove one of them.", "duplicate")  # fmt: skip
        _leave_out(decisions, place, problem, policies)


def _leave_out_look_alikes(
    decisions: Decisions, samples: Sequence[RawSample], hashes: NDArray[np.uint8], pieces: Pieces,
    policies: ProblemsParams,
) -> None:  # fmt: skip
    ranks = np.array([RANK[split] for split in decisions.splits], np.int64)
    ranks[~decisions.is_used] = -1
    pairs = look_alikes(hashes, ranks)
    wanted = {place for pair in pairs for place in pair}
    glances: dict[int, NDArray[np.uint8]] = {}
    for first, batch in pieces.batches("glance") if wanted else ():
        own = [place for place in range(first, first + batch.num_rows) if place in wanted]
        if own:
            every = _glances(batch)
            glances |= {place: every[place - first].copy() for place in own}
    for place, kept in sorted(really_alike(pairs, glances).items()):
        found = (
            f"looks like {samples[kept].image}; it is in {decisions.splits[place]}, "
            f"the other in {decisions.splits[kept]}"
        )
        fix = (
            "Put both into one group (dataset.group_pattern), or leave this one out "
            "(prepare.problems.near_duplicate: quarantine)."
        )
        expected = "nothing to be measured on that was learned from"
        problem = Problem(samples[place].image, found, expected, fix, "near_duplicate")
        _leave_out(decisions, place, problem, policies)


def _leave_out(decisions: Decisions, place: int, problem: Problem, policies: ProblemsParams) -> None:
    told = judged(problem, policies)
    if told.outcome == "quarantined":
        told = Told(problem, "duplicate")
    decisions.told.append(told)
    if told.outcome not in KEPT:
        decisions.is_used[place] = False


def _keep_masks(decisions: Decisions, samples: Sequence[RawSample], fraction: float) -> None:
    train = np.array([split == "train" for split in decisions.splits], bool)
    places = np.flatnonzero(train & decisions.is_used & decisions.has_mask).tolist()
    chosen = chosen_masks((samples[place].id for place in places), fraction)
    decisions.has_mask[places] = [samples[place].id in chosen for place in places]


def assemble(
    samples: Sequence[RawSample], pieces: Pieces, decisions: Decisions, outcomes: Mapping[Outcome, int],
    classes: Classes, prepare: PrepareParams, folder: Path,
) -> PreparedDataset:  # fmt: skip
    writer, summary = ShardWriter(folder / "shards", prepare.shard_mb * 10**6), Summary(classes)
    for first, batch in pieces.batches():
        columns = {name: batch.column(name) for name in batch.schema.names}
        for row in range(batch.num_rows):
            place = first + row
            if not decisions.is_used[place]:
                continue
            own = {name: column[row].as_py() for name, column in columns.items() if name not in ("glance", "told")}
            sample, has_mask = samples[place], bool(decisions.has_mask[place])
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
