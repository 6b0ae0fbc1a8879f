"""The samples that a batch adds or completes, and the existing raw data that may conflict with them."""

from dataclasses import dataclass, field
from pathlib import Path

from pspnet.checkout.together import AS_IT_IS, Together
from pspnet.config.dataset import DatasetParams
from pspnet.config.prepare import PrepareParams
from pspnet.dataset.store.splits import Split
from pspnet.errors import Problem
from pspnet.raw.grouping import grouped
from pspnet.raw.layouts import LAYOUTS
from pspnet.raw.problems import Verdict, judge
from pspnet.raw.sample import RawSample
from pspnet.raw.splitting import assign_splits


@dataclass
class Arrivals:
    samples: list[RawSample] = field(default_factory=list)
    same_size: list[RawSample] = field(default_factory=list)  # raw images of the same size as one in the batch
    official: dict[tuple[str, Split], RawSample] = field(default_factory=dict)  # the first in each group and split
    verdicts: list[Verdict] = field(default_factory=list)


def list_arrivals(together: Together, dataset: DatasetParams, prepare: PrepareParams, splits_from: Path) -> Arrivals:
    """List the samples that the batch adds or completes. `splits_from`: the folder that contains splits.csv."""
    arrivals, batch = Arrivals(), together.batch
    sizes = {batch.size(file.path) for file in batch.below(AS_IT_IS) if not isinstance(file, Problem)}
    found = LAYOUTS[dataset.source.layout].find(dataset.source, together)
    for item in grouped(found, dataset.group_pattern, splits_from):
        if isinstance(item, Problem):
            if item.where in together.of_batch:
                arrivals.verdicts.append(judge(item, prepare.problems, item.kind == "contradicting_splits"))
        elif item.image in together.of_batch or together.brings_mask(item):
            arrivals.samples.append(item)
        else:
            if together.size(item.image) in sizes:
                arrivals.same_size.append(item)
            if item.split:
                arrivals.official.setdefault((item.group, item.split), item)
    arrivals.verdicts += _torn(arrivals, prepare)
    return arrivals


def _torn(arrivals: Arrivals, prepare: PrepareParams) -> list[Verdict]:
    """Verdicts on groups that the batch would spread over several official splits."""
    before = list(arrivals.official.values())
    known = {one.problem.where for one in assign_splits(before, prepare)[1]}
    return [one for one in assign_splits([*before, *arrivals.samples], prepare)[1] if one.problem.where not in known]
