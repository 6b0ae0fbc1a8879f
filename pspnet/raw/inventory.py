"""The samples in the raw folder, before any image is read."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pspnet.config.dataset import DatasetParams
from pspnet.config.prepare import PrepareParams
from pspnet.errors import Problem, UserError
from pspnet.raw.classes import declared_classes
from pspnet.raw.files import RawFiles
from pspnet.raw.grouping import grouped
from pspnet.raw.layouts import LAYOUTS
from pspnet.raw.pieces import Piece, cut
from pspnet.raw.problems import KEPT, Verdict, judge, stop_for
from pspnet.raw.sample import RawSample
from pspnet.raw.splitting import assign_splits, missing_masks
from pspnet.raw.validation import Rules

LONG_BYTES = 2**30  # bytes of raw files that take a minute or more to read


@dataclass(frozen=True)
class RawDataset:
    files: RawFiles
    rules: Rules
    pieces: list[Piece]
    verdicts: list[Verdict]  # problems with files that are not samples

    @property
    def samples(self) -> Iterator[RawSample]:
        return (sample for piece in self.pieces for sample in piece.samples)

    @property
    def count(self) -> int:
        return sum(piece.count for piece in self.pieces)

    @property
    def bytes(self) -> int:
        return sum(piece.bytes for piece in self.pieces)

    @property
    def found(self) -> int:
        """The number of images and other files found."""
        return self.count + sum(one.outcome not in KEPT for one in self.verdicts)


def take_inventory(dataset: DatasetParams, prepare: PrepareParams, raw: Path) -> RawDataset:
    """List the samples, and the problems with files that are not samples."""
    if not raw.is_dir():
        fix = f"Put your data there, or draw some to try: pspnet synthesize {raw}"
        raise UserError(Problem(str(raw), "is missing", "the raw data folder", fix))
    files, layout = RawFiles(raw), LAYOUTS[dataset.source.layout]
    classes = declared_classes(dataset, raw, layout.classes(dataset.source, files))
    verdicts: list[Verdict] = []

    def samples() -> Iterator[RawSample]:
        for item in grouped(layout.find(dataset.source, files), dataset.group_pattern, raw):
            if isinstance(item, RawSample):
                yield item
            else:
                verdict = judge(item, prepare.problems, mendable=item.kind == "contradicting_splits")
                verdicts.append(Verdict(item, "left out") if verdict.outcome == "allowed" else verdict)

    rules = Rules.of(classes, prepare)
    return RawDataset(files, rules, cut(samples(), files, rules), verdicts)


def stop_before_reading(raw: RawDataset, prepare: PrepareParams, listing: Path) -> None:
    """Stop now for problems that are already known if reading the images would take a long time. Otherwise all problems
    are reported together, after the images have been read.
    """
    if raw.bytes < LONG_BYTES:
        return
    split_of, torn = assign_splits(raw.samples, prepare)
    labeled = [(split_of[sample.group], sample.group) for sample in raw.samples if sample.mask]
    lacking = missing_masks(labeled) if prepare.split_by == "hash" or not labeled else []
    stop_for([*raw.verdicts, *torn], raw.found, prepare, raw.files.root, listing, lacking)
