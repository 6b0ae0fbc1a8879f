"""`pspnet study`: makes the runs that are missing, one after the other, and writes what all of them show."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pspnet.config.params import Params
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.errors import Problem, UserError
from pspnet.machine.terminal import Tick
from pspnet.model.device import configure
from pspnet.study.arms import SCRATCH, chosen_arms, with_arm
from pspnet.study.budget import Budget, expected_seconds
from pspnet.study.comparing import chapters
from pspnet.study.compute import compute_of
from pspnet.study.grid import Design, Run, grid, masks_of
from pspnet.study.identity import Identity
from pspnet.study.making import Maker
from pspnet.study.page import Study, page
from pspnet.study.results import WAIT_SECONDS, Results
from pspnet.study.sentence import headline
from pspnet.study.sharing import by_preference, take_block
from pspnet.study.training import Material

FRACTIONS = ("1/16", "1/4")
SECTIONS = ("backbone", "pretrain", "finetune", "predict", "runtime")


@dataclass(frozen=True)
class Asked:
    """The options of the command."""

    hours: float
    fractions: Sequence[str]
    masks: Sequence[int]
    seeds: int
    arms: Sequence[str]
    steps: Sequence[int]
    pretraining_share: float


@dataclass(frozen=True)
class Outcome:
    sentence: str
    finished: int
    runs: int
    seconds_left: float | None  # that the missing runs would take here; None before the first has finished
    gains: dict[str, float]  # by arm and number of masks

    @property
    def progress(self) -> str:
        done = f"{self.finished:,} of {self.runs:,} runs are finished"
        if self.finished == self.runs or self.seconds_left is None:
            return f"{done}."
        return f"{done}; the others take about {self.seconds_left / 3600:.1f} hours here. The same command continues."


def study(
    params: Params, material: Material, asked: Asked, out: Path, state: Path, warn: Callable[[str], object], tick: Tick
) -> Outcome:
    design = _design(asked, params, material.dataset, warn)
    results = Results(out)
    results.prepare()
    identity = Identity.of(material, params, configure(params.runtime))
    computes = {}
    for number, arm in enumerate(design.arms):
        tick(number, len(design.arms), f"counting the operations of {arm.name}")
        computes[arm.name] = compute_of(material, with_arm(params, arm), identity, results, tick)
    runs = grid(material, identity, params, design, computes)
    maker = Maker(material, results, state, identity.key("finetune", params, SECTIONS), warn)
    write = _Writer(results, design, runs, material.dataset)
    before = write()
    try:
        _make_all(maker, results, runs, Budget.of(asked.hours), write, tick)
    finally:
        after = write()
    if after.finished > before.finished:
        maker.record_result(params, after.finished, after.gains)
    return after


def _design(asked: Asked, params: Params, dataset: PreparedDataset, warn: Callable[[str], object]) -> Design:
    available = len(dataset.annotated("train"))
    if not available:
        raise UserError(Problem(str(dataset.folder), "has no masks in train", "images with masks"))
    fractions = asked.fractions or (() if asked.masks else FRACTIONS)
    own_steps = round(params.finetune.epochs * max(1, available // params.finetune.batch_size))
    return Design(
        arms=chosen_arms(asked.arms, params, warn),
        masks=masks_of(fractions, asked.masks, available),
        seeds=asked.seeds,
        steps=sorted(set(asked.steps or [max(1, own_steps)])),
        pretraining_share=asked.pretraining_share,
    )


def _make_all(
    maker: Maker, results: Results, runs: Sequence[Run], budget: Budget, write: "_Writer", tick: Tick
) -> None:
    """Make the missing runs until none is left or the next does not fit. Waits for those that others make."""
    failed = set[str]()
    while missing := [run for run in runs if not results.has(run.key) and run.key not in failed]:
        made = False
        for run in by_preference(results, missing):
            needs_backbone = run.pretraining is not None and not maker.has_backbone(run.pretraining)
            if not budget.fits(expected_seconds(run, write.rows(), needs_backbone)):
                return
            try:
                made = _make(maker, results, run, _numbered(tick, run, len(runs) - len(missing) + 1, len(runs)))
            except UserError as error:
                if run.arm.name == SCRATCH:  # then the params or the data are at fault
                    raise
                maker.warn(f"{run.name}: {error}")  # such as a method that has collapsed, which is a result too
                failed.add(run.key)
                made = True
            if made:
                write()
                break
        if not made:
            tick(len(runs) - len(missing), len(runs), "waiting for the runs of other processes")
            time.sleep(WAIT_SECONDS)


def _make(maker: Maker, results: Results, run: Run, tick: Tick) -> bool:
    """Make the run, and the backbone before it, unless another process makes one of them now."""
    if (pretraining := run.pretraining) and not maker.has_backbone(pretraining):
        with results.claimed(pretraining.key) as ours:
            if not ours:
                return False
            if not maker.has_backbone(pretraining):
                take_block(results, run)
                maker.make_backbone(pretraining, tick)
    with results.claimed(run.key) as ours:
        if not ours:
            return False
        if not results.has(run.key):
            take_block(results, run)
            maker.make(run, tick)
        return True


def _numbered(tick: Tick, run: Run, number: int, count: int) -> Tick:
    return lambda done, total, note: tick(done, total, f"run {number}/{count}, {run.name}: {note}")


class _Writer:
    """Writes the CSV and the page of the runs that are finished."""

    def __init__(self, results: Results, design: Design, runs: Sequence[Run], dataset: PreparedDataset) -> None:
        self._results, self._design, self._runs, self._dataset = results, design, runs, dataset
        self._keys = [run.key for run in runs]

    def rows(self) -> pd.DataFrame:
        rows = self._results.rows(self._keys)
        equal = {run.key: run.equal_steps for run in self._runs}  # depends on the other arms of this command
        return rows.assign(equal_steps=rows["key"].map(equal)) if len(rows) else rows

    def __call__(self) -> Outcome:
        rows = self.rows()
        arms = [(arm.name, arm.family) for arm in self._design.arms]
        found = chapters(rows, arms, self._design.steps)
        missing = [run for run in self._runs if not self._results.has(run.key)]
        left = [expected_seconds(run, rows, needs_backbone=False) for run in missing]
        gains = {f"{one.arm} {c.masks} masks {c.steps} steps": one.gain.value for c in found for one in c.comparisons}
        seconds = None if None in left else sum(one or 0.0 for one in left)
        outcome = Outcome(headline(found), len(rows), len(self._keys), seconds, gains)
        self._results.write(page(Study(outcome.sentence, found, rows, len(self._keys), self._dataset)))
        return outcome
