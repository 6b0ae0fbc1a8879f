"""Turn checked pieces into the prepared dataset and its report, or report all problems that stop the stage."""

from collections import Counter
from pathlib import Path

from pspnet.config.dataset import DatasetParams
from pspnet.config.prepare import PrepareParams
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.raw.assembly import Pieces, assemble, decide, lacking_masks
from pspnet.raw.data_report import absent_classes, write_data_report
from pspnet.raw.inventory import RawDataset
from pspnet.raw.problems import Verdict, judge, stop_for


def write_prepared(
    found: RawDataset,
    checked: Path,
    dataset: DatasetParams,
    prepare: PrepareParams,
    raw: Path,
    out: Path,
    listing: Path,
) -> tuple[PreparedDataset, list[Verdict]]:
    """Write the dataset and its report into `out`. `checked` is the folder of the pieces. `listing` is the CSV file
    that lists every problem if the problems stop the stage.
    """
    pieces = Pieces(checked, found.pieces)
    decisions = decide(found, pieces, prepare, dataset.labeled_fraction)
    told = [*found.verdicts, *decisions.verdicts]
    stop_for(told, found.found, prepare, raw, listing, lacking_masks(found, decisions))
    outcomes = Counter(one.outcome for one in told)
    prepared = assemble(found, pieces, decisions, outcomes, prepare, out)
    told += [judge(problem, prepare.problems) for problem in absent_classes(prepared)]
    stop_for(told, found.found, prepare, raw, listing)
    assert found.found == prepared.found  # no image is lost silently
    prepared.write()
    write_data_report(prepared, told, decisions.repeated, found.files, found.rules, out)
    return prepared, told
