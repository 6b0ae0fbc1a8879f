"""The samples in the raw folder, before any image is read."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pspnet.config.dataset import DatasetParams
from pspnet.config.prepare import PrepareParams
from pspnet.dataset.store.splits import Split
from pspnet.errors import Problem, UserError
from pspnet.raw.classes import declared_classes
from pspnet.raw.files import RawFiles
from pspnet.raw.grouping import grouped
from pspnet.raw.layouts import LAYOUTS
from pspnet.raw.pieces import Piece, cut
from pspnet.raw.problems import KEPT, Verdict, judge, located, shortened, stop_for
from pspnet.raw.sample import RawSample
from pspnet.raw.splitting import assign_splits, missing_masks
from pspnet.raw.validation import Rules


@dataclass(frozen=True)
class RawDataset:
    files: RawFiles
    rules: Rules
    pieces: list[Piece]
    verdicts: list[Verdict]  # on files that are not samples

    @property
    def samples(self) -> Iterator[RawSample]:
        return (sample for piece in self.pieces for sample in piece.samples)

    @property
    def count(self) -> int:
        return sum(piece.count for piece in self.pieces)

    @property
    def found(self) -> int:
        """The number of images and other files found."""
        return self.count + sum(one.outcome not in KEPT for one in self.verdicts)


def take_inventory(dataset: DatasetParams, prepare: PrepareParams, raw: Path) -> RawDataset:
    """Lists the samples and reports every problem that can be found without reading the images, which takes hours."""
    if not raw.is_dir():
        fix = f"Put your data there, or draw some to try: pspnet synthesize {raw}"
        raise UserError(Problem(str(raw), "is missing", "the folder of the raw data", fix))
    files, layout = RawFiles(raw), LAYOUTS[dataset.source.layout]
    classes = declared_classes(dataset, raw, layout.classes(dataset.source, files))
    verdicts: list[Verdict] = []

    def samples() -> Iterator[RawSample]:
        for item in grouped(layout.find(dataset.source, files), dataset.group_pattern, raw):
            if isinstance(item, RawSample):
                yield item
            else:
                verdict = judge(item, prepare.problems, mended=item.kind == "contradicting_splits")
                verdicts.append(Verdict(item, "left out") if verdict.outcome == "allowed" else verdict)

    rules = Rules(classes, prepare.problems, round(prepare.max_megapixels * 10**6))
    found = RawDataset(files, rules, cut(samples(), files, rules), verdicts)
    split_of, torn = assign_splits(found.samples, prepare)
    stop_for([*verdicts, *torn], found.found, prepare, raw)
    labeled = Counter(sample.group for sample in found.samples if sample.mask)
    if prepare.split_by == "hash" or not labeled:
        masks, groups = Counter[Split](), Counter[Split]()
        for group, count in labeled.items():
            masks[split_of[group]] += count
            groups[split_of[group]] += 1
        if problems := missing_masks(masks, groups):
            raise UserError(shortened([*problems, *located((one.problem for one in verdicts), raw)]))
    return found
