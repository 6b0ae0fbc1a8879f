"""Raw files -> the prepared dataset, checked here or in parts on other machines."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow

from pspnet.config.dataset import DatasetParams
from pspnet.config.prepare import PrepareParams
from pspnet.machine.outputs import whole_folder
from pspnet.machine.process import exclusive
from pspnet.raw.inventory import take_inventory
from pspnet.raw.parts import join, parse_part, take, write_part
from pspnet.raw.pieces import discard, folder_of, take_over
from pspnet.raw.preparation import write_prepared
from pspnet.raw.workers import check_pieces
from pspnet.tracking.run import StageRun

Tick = Callable[[int, int, str], None]


def run(
    dataset: DatasetParams,
    prepare: PrepareParams,
    *,
    raw: Path,
    out: Path,
    checkpoints: Path,
    merge: Sequence[Path] = (),
    run: StageRun,
    tick: Tick,
) -> str:
    """Prepare the dataset; returns a one-line summary. `merge`: folders of parts checked elsewhere."""
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # other pools keep freed memory
    found = take_inventory(dataset, prepare, raw)
    run.identify(raw=raw)
    folder = folder_of(found.pieces, checkpoints / "prepare")
    needed_bytes = sum(piece.bytes for piece in found.pieces)
    with exclusive(folder.with_suffix(".lock"), "the checked images"), whole_folder(out, needed_bytes) as partial:
        take_over(found.pieces, folder)
        if merge:
            join(merge, found, folder, tick)
        take(found, folder, tick)
        check_pieces(found.pieces, folder, found.files, found.rules, tick)
        prepared, told = write_prepared(found, folder, dataset, prepare, raw, partial)
        discard(folder)
    for split, images in prepared.images.items():
        run.dataset(split, prepared.fingerprints[split], out, images)
    counts = {"quarantined": prepared.quarantined, "duplicates": prepared.duplicates}
    run.figures({"images": prepared.images, "masks": prepared.masks, **counts})
    run.artifacts(out / "dataset.json", out / "data_report.html", out / "problems.csv")
    kinds = Counter(f"{one.problem.kind} {one.outcome}" for one in told)
    return f"{prepared.in_words()}" + "".join(f"; {count:,} x {kind}" for kind, count in sorted(kinds.items()))


def run_part(
    dataset: DatasetParams, prepare: PrepareParams, *, raw: Path, out: Path, part: str, tick: Tick
) -> None:  # fmt: skip
    """Check one part of the raw data, and write it as a folder for `merge` of `run`."""
    own = parse_part(part)
    write_part(take_inventory(dataset, prepare, raw), own, out, tick)
