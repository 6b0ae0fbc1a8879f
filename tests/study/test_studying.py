"""Whole studies in pytest's process: what is made, in which order, and when it stops."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from pspnet.errors import Interrupted, Problem, UserError
from pspnet.study.comparing import STILL_GAINS
from pspnet.study.making import Stopwatch
from pspnet.study.results import Results
from tests.study.conftest import ARMS, run_study
from tests.training.trainings import Tick, quiet

MEASURED = ["arm", "masks", "seed", "steps", "test_mean_iou", "val_mean_iou", "flops"]  # the same on any day


def made_by(notes: list[str]) -> list[str]:
    """The names of the runs that the ticks told of, in order."""
    return list(dict.fromkeys(note.partition(": ")[0].partition(", ")[2] for note in notes if note.startswith("run ")))


def measured(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "study.csv")[MEASURED]


def test_a_study_compares_every_arm_with_scratch_of_the_same_compute(whole_study: Path) -> None:
    results = pd.read_csv(whole_study / "study.csv")
    assert set(results["arm"]) == {"scratch", *ARMS}
    assert results.groupby("arm")["seed"].nunique().eq(2).all()
    scratch = results[results["arm"] == "scratch"].set_index(["seed", "steps"])["flops"]
    half_a_step = scratch[0, 4] / 8  # steps are whole, and here they are few
    for one in results.itertuples():
        assert abs(scratch[one.seed, one.equal_steps] - one.flops) <= max(0.02 * one.flops, half_a_step)
    assert results["test_mean_iou"].between(0, 1).all()
    assert (results["seconds"] > 0).all()


def test_seeds_and_arms_are_paired(whole_study: Path) -> None:
    """The same seed gives the same weights and masks: only the method differs."""
    results = measured(whole_study)
    jigsaw, shuffled = (
        results[results["arm"] == arm]["test_mean_iou"].tolist() for arm in ("jigsaw", "jigsaw_shuffled")
    )
    assert jigsaw != shuffled
    assert jigsaw[0] != jigsaw[1]


def test_a_finished_study_is_not_made_again(whole_study: Path, prepared: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole_study, tmp_path / "study"))
    notes: list[str] = []
    outcome = run_study(prepared, out, lambda done, total, note: notes.append(note))
    assert made_by(notes) == []
    assert outcome.progress == f"{outcome.runs} of {outcome.runs} runs are finished."
    assert (out / "study.html").read_bytes() == (whole_study / "study.html").read_bytes()


def test_a_study_without_time_only_writes_what_it_knows(prepared: Path, tmp_path: Path) -> None:
    outcome = run_study(prepared, tmp_path, hours=0.0, arms=("jigsaw",))
    assert outcome.sentence.startswith("There is no answer yet")
    assert (outcome.finished, outcome.seconds_left) == (0, None)
    assert "0 of 6 runs are finished" in (tmp_path / "study.html").read_text()


def test_a_run_that_would_not_fit_is_not_begun(whole_study: Path, prepared: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole_study, tmp_path / "study"))
    for path in (out / "runs").iterdir():
        row = json.loads(path.read_text())
        if row["arm"] == "mean_teacher" and row["seed"] == 1:
            path.unlink()
        path.write_text(json.dumps({**row, "seconds": 3000.0})) if path.exists() else None
    notes: list[str] = []
    outcome = run_study(prepared, out, lambda done, total, note: notes.append(note), hours=0.5)
    assert made_by(notes) == []
    assert outcome.finished == outcome.runs - 1
    assert outcome.seconds_left == pytest.approx(3010, abs=5)
    assert "the others take about 0.8 hours here" in outcome.progress
    assert run_study(prepared, out, hours=1.0).finished == outcome.runs


def test_an_interrupted_study_continues_with_the_same_results(
    whole_study: Path, prepared: Path, tmp_path: Path
) -> None:
    def stop_in(words: str) -> Tick:
        def tick(done: int, total: int, note: str) -> None:
            if words in note and done >= 8:  # of the 16 images of a run
                raise Interrupted(130)

        return tick

    for words in ("scratch, 3 masks, 4 steps", "jigsaw, 3 masks"):
        with pytest.raises(Interrupted, match="command continues from there"):
            run_study(prepared, tmp_path, stop_in(words), arms=("jigsaw",), seeds=1)
    run_study(prepared, tmp_path, arms=("jigsaw",), seeds=1)
    names = MEASURED[:4]
    both = measured(tmp_path).merge(measured(whole_study), on=names, suffixes=("", "_undisturbed"))
    assert len(both) == 3
    for name in MEASURED[4:]:
        assert both[name].tolist() == both[f"{name}_undisturbed"].tolist()
    assert not list((tmp_path / "work/checkpoints").iterdir()), "finished runs need no checkpoints"


def test_a_run_that_another_process_makes_is_left_to_it(whole_study: Path, prepared: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole_study, tmp_path / "study"))
    paths = sorted((out / "runs").iterdir())
    for path in paths[:2]:
        path.unlink()
    theirs, ours = paths[0].stem, paths[1].stem
    notes: list[str] = []

    class Enough(Exception):
        pass

    def tick(done: int, total: int, note: str) -> None:
        notes.append(note)
        if note.startswith("waiting"):
            raise Enough

    with Results(out).claimed(theirs) as free:
        assert free
        with Results(out).claimed(theirs) as again:
            assert not again
        with pytest.raises(Enough):
            run_study(prepared, out, tick)
    assert Results(out).has(ours)
    assert not Results(out).has(theirs)


def test_the_csv_holds_every_run_of_the_folder_and_the_page_those_asked_for(
    whole_study: Path, prepared: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(whole_study, tmp_path / "study"))
    outcome = run_study(prepared, out, hours=0.0, arms=("jigsaw",))
    assert outcome.finished == outcome.runs == 6
    assert len(measured(out)) == len(measured(whole_study))
    assert "mean_teacher" not in (out / "study.html").read_text()


def test_class_weights_come_from_the_masks_of_the_run(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Enough(Exception):
        pass

    def build(params: object, classes: tuple[str, ...], pixels: list[int], *others: object) -> None:
        assert sum(pixels) == 5 * 96 * 128
        raise Enough

    run_study(
        prepared, tmp_path, hours=0.0, arms=("jigsaw",), masks=(5,)
    )  # counts the operations, with masks of its own
    monkeypatch.setattr("pspnet.study.training.build_loss", build)
    with pytest.raises(Enough):
        run_study(prepared, tmp_path, arms=("jigsaw",), masks=(5,))


def test_an_arm_that_fails_does_not_stop_the_others(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def collapse(*arguments: object) -> None:
        raise UserError(Problem("jigsaw", "has collapsed"))

    monkeypatch.setattr("pspnet.study.making.train_backbone", collapse)
    notes: list[str] = []
    outcome = run_study(prepared, tmp_path, seeds=1, arms=("jigsaw", "mean_teacher"), warn=notes.append)
    assert notes == ["jigsaw, 3 masks, 4 steps, seed 0: jigsaw: has collapsed"]
    assert (outcome.finished, outcome.runs) == (4, 5)
    assert set(measured(tmp_path)["arm"]) == {"scratch", "mean_teacher"}


def test_wrong_options_are_reported_together(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--masks: is 1000; expected 1 to"):
        run_study(prepared, tmp_path, masks=(1000,))


def test_a_resumed_training_counts_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 11.0, 14.0])
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    watch = Stopwatch(quiet)
    for done in (60, 80, 80, 100):  # the second tick at 80 is val's
        watch(done, 100, "")
    assert watch.seconds == pytest.approx((14 - 10) / (100 - 60) * 100)
    assert Stopwatch(quiet).seconds is None
    assert STILL_GAINS == 0.005
