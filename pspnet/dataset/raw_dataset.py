"""What lies in the raw folder, before any image has been read."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pspnet.config.dataset import DatasetParams
from pspnet.config.prepare import PrepareParams
from pspnet.dataset.adapters import LAYOUTS
from pspnet.dataset.classes import declared_classes
from pspnet.dataset.grouping import grouped
from pspnet.dataset.pieces import Piece, cut
from pspnet.dataset.problems import KEPT, Told, judged, located, shortened, stop_for
from pspnet.dataset.raw import RawFiles
from pspnet.dataset.raw_samples import RawSample
from pspnet.dataset.samples import Split
from pspnet.dataset.splits import assign_splits, missing_masks
from pspnet.dataset.validation import Rules
from pspnet.errors import Problem, UserError


@dataclass(frozen=True)
class RawDataset:
    files: RawFiles
    rules: Rules
    pieces: list[Piece]
    told: list[Told]  # of files that are no samples

    @property
    def samples(self) -> Iterator[RawSample]:
        return (sample for piece in self.pieces for sample in piece.samples)

    @property
    def count(self) -> int:
        return sum(piece.count for piece in self.pieces)

    @property
    def found(self) -> int:
        """Images and other files."""
        return self.count + sum(one.outcome not in KEPT for one in self.told)


def look(dataset: DatasetParams, prepare: PrepareParams, raw: Path) -> RawDataset:
    """Whatever can be known now is told now, not after hours of reading."""
    if not raw.is_dir():
        fix = f"Put your data there, or draw some to try: pspnet synthesize {raw}"
        raise UserError(Problem(str(raw), "is missing", "the folder of the raw data", fix))
    files, layout = RawFiles(raw), LAYOUTS[dataset.source.layout]
    classes = declared_classes(dataset, raw, layout.classes(dataset.source, files))
    told: list[Told] = []

    def samples() -> Iterator[RawSample]:
        for item in grouped(layout.find(dataset.source, files), dataset.group_pattern, raw):
            if isinstance(item, RawSample):
                yield item
            else:
                judgement = judged(item, prepare.problems, mended=item.kind == "contradicting_splits")
                told.append(Told(item, "left out") if judgement.outcome == "allowed" else judgement)

    rules = Rules(classes, prepare.problems, round(prepare.max_megapixels * 10**6))
    found = RawDataset(files, rules, cut(samples(), files, rules), told)
    split_of, torn = assign_splits(found.samples, prepare)
    stop_for([*told, *torn], found.found, prepare, raw)
    labelled = Counter(sample.group for sample in found.samples if sample.mask)
    if prepare.split_by == "hash" or not labelled:
        masks, groups = Counter[Split](), Counter[Split]()
        for group, count in labelled.items():
            masks[split_of[group]] += count
            groups[split_of[group]] += 1
        if problems := missing_masks(masks, groups):
            raise UserError(shortened([*problems, *located((one.problem for one in told), raw)]))
    return found
