"""`prepare`: raw files -> the prepared dataset, by itself or from parts that were made elsewhere."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow

from pspnet.config.dataset import DatasetParams
from pspnet.config.prepare import PrepareParams
from pspnet.dataset.assembly import Pieces, assemble, decide
from pspnet.dataset.checking import check_pieces
from pspnet.dataset.data_report import absent_classes, write_data_report
from pspnet.dataset.parts import join, parse_part, take, write_part
from pspnet.dataset.pieces import discard, folder_of, take_over
from pspnet.dataset.problems import judged, located, shortened, stop_for
from pspnet.dataset.raw_dataset import look
from pspnet.dataset.splits import missing_masks
from pspnet.errors import UserError
from pspnet.outputs import whole_folder
from pspnet.process import exclusive
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
    """What came of it, in a line."""
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # the others keep what is freed
    found = look(dataset, prepare, raw)
    run.identify(raw=raw)
    folder = folder_of(found.pieces, checkpoints / "prepare")
    needed_bytes = sum(piece.bytes for piece in found.pieces)
    with exclusive(folder.with_suffix(".lock"), "the checked images"), whole_folder(out, needed_bytes) as partial:
        take_over(found.pieces, folder)
        if merge:
            join(merge, found, folder, tick)
        take(found, folder, tick)
        check_pieces(found.pieces, folder, found.files, found.rules, tick)
        pieces = Pieces(folder, found.pieces)
        decisions = decide(found, pieces, prepare, dataset.labelled_fraction)
        told = [*found.told, *decisions.told]
        stop_for(told, found.found, prepare, raw)
        outcomes = Counter(one.outcome for one in told)
        prepared = assemble(found, pieces, decisions, outcomes, prepare, partial)
        if problems := missing_masks(prepared.masks, prepared.groups):
            left_out = located((one.problem for one in told if one.outcome == "quarantined"), raw)
            raise UserError(shortened([*problems, *left_out]))
        absent = [judged(problem, prepare.problems) for problem in absent_classes(prepared)]
        stop_for(absent, found.found, prepare, raw)
        assert found.found == prepared.found  # nothing is lost without a word
        prepared.write()
        write_data_report(prepared, [*told, *absent], decisions.repeated, found.files, found.rules, partial)
        discard(folder)
    for split, images in prepared.images.items():
        run.dataset(split, prepared.fingerprints[split], out, images)
    counts = {"quarantined": prepared.quarantined, "duplicates": prepared.duplicates}
    run.figures({"images": prepared.images, "masks": prepared.masks, **counts})
    run.artifacts(out / "dataset.json", out / "data_report.html", out / "problems.csv")
    kinds = Counter(f"{one.problem.kind} {one.outcome}" for one in (*told, *absent))
    return f"{prepared.in_words()}" + "".join(f"; {count:,} x {kind}" for kind, count in sorted(kinds.items()))


def run_part(
    dataset: DatasetParams, prepare: PrepareParams, *, raw: Path, out: Path, part: str, tick: Tick
) -> None:  # fmt: skip
    """A part of the checking, as a folder that `run` may be given."""
    own = parse_part(part)
    write_part(look(dataset, prepare, raw), own, out, tick)
