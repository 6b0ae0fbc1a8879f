"""`prepare`: raw files -> the prepared dataset."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from pspnet.config.dataset import DatasetParams
from pspnet.config.prepare import PrepareParams
from pspnet.dataset.adapters import LAYOUTS
from pspnet.dataset.classes import declared_classes
from pspnet.dataset.description import describe
from pspnet.dataset.grouping import grouped
from pspnet.dataset.problems import located, shortened
from pspnet.dataset.raw import RawFiles
from pspnet.dataset.raw_samples import RawSample
from pspnet.dataset.shards import ShardWriter
from pspnet.dataset.splits import assign_splits, missing_masks
from pspnet.dataset.summary import Summary
from pspnet.dataset.validation import check
from pspnet.errors import Problem, UserError
from pspnet.outputs import whole_folder
from pspnet.tracking.run import StageRun


def run(
    dataset: DatasetParams,
    prepare: PrepareParams,
    *,
    raw: Path,
    out: Path,
    run: StageRun,
    tick: Callable[[int, int, str], None],
) -> None:
    if not raw.is_dir():
        fix = f"Put your data there, or draw some to try: pspnet synthesize {raw}"
        raise UserError(Problem(str(raw), "is missing", "the folder of the raw data", fix))
    run.identify(raw=raw)
    files, layout = RawFiles(raw), LAYOUTS[dataset.source.layout]
    classes = declared_classes(dataset, raw, layout.classes(dataset.source, files))
    found = list(grouped(layout.find(dataset.source, files), dataset.group_pattern, raw))
    samples = [item for item in found if isinstance(item, RawSample)]
    refused = [item for item in found if isinstance(item, Problem)]
    split_of = assign_splits(samples, prepare)
    labelled = [sample.group for sample in samples if sample.mask]
    masks, groups = Counter(split_of[group] for group in labelled), Counter(split_of[group] for group in {*labelled})
    if problems := missing_masks(masks, groups):  # told now, not after hours of reading
        raise UserError(shortened([*problems, *located(refused, raw)]))
    with whole_folder(out) as folder:
        writer = ShardWriter(folder / "shards", prepare.shard_mb * 10**6)
        summary = Summary(classes)
        max_pixels = round(prepare.max_megapixels * 10**6)
        for done, sample in enumerate(samples, start=1):
            checked = check(sample, split_of[sample.group], files=files, classes=classes, max_pixels=max_pixels)
            if isinstance(checked, Problem):
                refused.append(checked)
            else:
                writer.add(checked.record)
                summary.add(checked)
            tick(done, len(samples), sample.id)
        writer.close()
        if len(refused) / len(found) > prepare.tolerated_share:
            count = f"{len(refused):,} of {len(found):,} files cannot be used"
            raise UserError(
                shortened(located(refused, raw)), f"{count}; prepare.tolerated_share is {prepare.tolerated_share:.1%}."
            )
        prepared = summary.dataset(folder, writer.shards, refused)
        if problems := missing_masks(prepared.masks, prepared.groups):  # of those that were left
            raise UserError(shortened([*problems, *located(refused, raw)]))
        assert len(found) == sum(prepared.images.values()) + len(refused)
        prepared.write()
        (folder / "report.md").write_text(describe(prepared), encoding="utf-8")
    for split, images in prepared.images.items():
        run.dataset(split, prepared.fingerprints[split], out, images)
    run.figures({"images": prepared.images, "masks": prepared.masks, "refused": len(refused)})
    run.artifacts(out / "dataset.json", out / "report.md")
