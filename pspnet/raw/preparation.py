"""Checked pieces -> the prepared dataset with its report, or all the problems that stop the stage."""

from collections import Counter
from pathlib import Path

from pspnet.config.dataset import DatasetParams
from pspnet.config.prepare import PrepareParams
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.errors import UserError
from pspnet.raw.assembly import Pieces, assemble, decide
from pspnet.raw.data_report import absent_classes, write_data_report
from pspnet.raw.inventory import RawDataset
from pspnet.raw.problems import Verdict, judge, located, shortened, stop_for
from pspnet.raw.splitting import missing_masks


def write_prepared(
    found: RawDataset, checked: Path, dataset: DatasetParams, prepare: PrepareParams, raw: Path, out: Path
) -> tuple[PreparedDataset, list[Verdict]]:
    """Write the dataset and its report into `out`. `checked`: the folder of the pieces."""
    pieces = Pieces(checked, found.pieces)
    decisions = decide(found, pieces, prepare, dataset.labeled_fraction)
    told = [*found.verdicts, *decisions.verdicts]
    stop_for(told, found.found, prepare, raw)
    outcomes = Counter(one.outcome for one in told)
    prepared = assemble(found, pieces, decisions, outcomes, prepare, out)
    if problems := missing_masks(prepared.masks, prepared.groups):
        left_out = located((one.problem for one in told if one.outcome == "quarantined"), raw)
        raise UserError(shortened([*problems, *left_out]))
    absent = [judge(problem, prepare.problems) for problem in absent_classes(prepared)]
    stop_for(absent, found.found, prepare, raw)
    assert found.found == prepared.found  # no image is lost unreported
    prepared.write()
    told += absent
    write_data_report(prepared, told, decisions.repeated, found.files, found.rules, out)
    return prepared, told
