"""The prepare stage: from raw files to the prepared dataset. Files are checked here, or in parts on other machines."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow

from pspnet.config.dataset import DatasetParams
from pspnet.config.prepare import PrepareParams
from pspnet.errors import UserError
from pspnet.machine.outputs import whole_folder
from pspnet.machine.process import exclusive
from pspnet.raw.inventory import stop_before_reading, take_inventory
from pspnet.raw.parts import join, parse_part, take, write_part
from pspnet.raw.pieces import discard, folder_of, take_over
from pspnet.raw.preparation import write_prepared
from pspnet.raw.workers import check_pieces
from pspnet.tracking.run import StageRun

Tick = Callable[[int, int, str], None]
LISTING = "prepare/problems.csv"  # in the checkpoints folder; lists every problem if the stage stops


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
    """Prepare the dataset. Returns a one-line summary. `merge`: folders with parts that were checked elsewhere."""
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # other memory pools keep freed memory
    listing = checkpoints / LISTING
    listing.unlink(missing_ok=True)  # left by an earlier run
    found = take_inventory(dataset, prepare, raw)
    stop_before_reading(found, prepare, listing)
    run.identify(raw=raw)
    folder = folder_of(found.pieces, checkpoints / "prepare")
    with (
        exclusive(folder.with_suffix(".lock"), "the checked images"), _recorded(listing, run),
        whole_folder(out, found.bytes) as partial,
    ):  # fmt: skip
        take_over(found.pieces, folder)
        if merge:
            join(merge, found, folder, tick)
        take(found, folder, tick)
        check_pieces(found.pieces, folder, found.files, found.rules, tick)
        prepared, told = write_prepared(found, folder, dataset, prepare, raw, partial, listing)
        discard(folder)
    for split, images in prepared.images.items():
        run.dataset(split, prepared.fingerprints[split], out, images)
    counts = {"quarantined": prepared.quarantined, "duplicates": prepared.duplicates}
    run.figures({"images": prepared.images, "masks": prepared.masks, **counts})
    run.artifacts(out / "dataset.json", out / "data_report.html", out / "problems.csv")
    every = [(one.problem.kind, one.outcome) for one in told]
    kinds = Counter(kind if kind == outcome else f"{kind} ({outcome})" for kind, outcome in every)
    return f"{prepared.in_words()}" + "".join(f"; {count:,} x {kind}" for kind, count in sorted(kinds.items()))


@contextmanager
def _recorded(listing: Path, run: StageRun) -> Iterator[None]:
    """If problems stop the stage, attach their list to its run: few people can read files on a team's worker."""
    try:
        yield
    except UserError:
        if listing.exists():
            run.artifacts(listing)
        raise


def run_part(
    dataset: DatasetParams, prepare: PrepareParams, *, raw: Path, out: Path, checkpoints: Path, part: str, tick: Tick
) -> None:  # fmt: skip
    """Check one part of the raw data. Write the result to a folder that can be given to `run` as `merge`."""
    own, found = parse_part(part), take_inventory(dataset, prepare, raw)
    stop_before_reading(found, prepare, checkpoints / LISTING)
    write_part(found, own, out, tick)
