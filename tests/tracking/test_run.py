from pathlib import Path
from typing import Any

import pytest

from pspnet.config.params import Params
from pspnet.machine.events import new_log, read
from pspnet.tracking.run import StageRun
from tests.parameters import demo_params
from tests.raw.rawdata import write
from tests.tracking.runs import entries

RECORDS = [{"step": 1, "epoch": 1.0, "loss": 2.5}, {"step": 2, "epoch": 2.0, "loss": 1.5}]


def open_run(root: Path, params: Params | None = None, stage: str = "finetune", **facts: Any) -> StageRun:
    params = params or demo_params()
    sections = {"finetune": params.finetune, "runtime": params.runtime}
    run = StageRun(root, stage, sections, {"experiment": "m", "started": 1}, {"tags": {}, "started": 1})
    run.identify(**(facts or {"training": "abc"}))
    assert run.error is None
    return run


def folder(run: StageRun) -> Path:
    assert run.journal
    return run.journal.folder


def test_the_same_work_continues_its_journal(tmp_path: Path) -> None:
    assert folder(open_run(tmp_path)) == folder(open_run(tmp_path))


@pytest.mark.parametrize(
    "other",
    [
        {"params": demo_params(finetune__optimizer__learning_rate=0.5)},
        {"params": demo_params(runtime__seed=1)},
        {"training": "abd"},
        {"stage": "pretrain"},
    ],
)
def test_different_work_has_a_different_journal(tmp_path: Path, other: dict[str, Any]) -> None:
    assert folder(open_run(tmp_path)) != folder(open_run(tmp_path, **other))


def test_params_of_other_stages_make_no_difference(tmp_path: Path) -> None:
    assert folder(open_run(tmp_path)) == folder(open_run(tmp_path, demo_params(pretrain__epochs=1)))


def test_a_folder_is_identified_by_names_sizes_and_times(tmp_path: Path) -> None:
    raw, root = tmp_path / "raw", tmp_path / "tracking"
    write(raw / "images/a.png", "one")
    (raw / "nowhere").symlink_to(tmp_path / "missing")
    found = [folder(open_run(root, raw=raw)), folder(open_run(root, raw=raw))]
    write(raw / "images/b.png", "two")
    found.append(folder(open_run(root, raw=raw)))
    (raw / "images/b.png").rename(raw / "images/c.png")
    found.append(folder(open_run(root, raw=raw)))
    write(raw / "images/c.png", "three")
    found.append(folder(open_run(root, raw=raw)))
    assert found[0] == found[1]
    assert len(set(found)) == 4


def test_the_records_of_a_training_run_pass_through_unchanged(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    assert list(run.epochs(RECORDS)) == RECORDS
    assert list(run.epochs(RECORDS)) == RECORDS  # the records are repeated after a resume
    epochs = [entry for entry in entries(folder(run)) if entry["kind"] == "epoch"]
    assert [(entry["step"], entry["values"]) for entry in epochs] == [(1, {"loss": 2.5}), (2, {"loss": 1.5})]


def test_a_record_is_in_the_journal_before_the_next_epoch_begins(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    for number, _ in enumerate(run.epochs(RECORDS), start=1):
        assert sum(entry["kind"] == "epoch" for entry in entries(folder(run))) == number


def test_an_artifact_is_kept_unchanged(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    report = write(tmp_path / "report.html", "first")
    run.artifacts(report)
    write(report, "second")
    run.artifacts(report)
    run.artifact("pictures/report.html", lambda path: path.write_text("first"))
    kept = [entry for entry in entries(folder(run)) if entry["kind"] == "artifact"]
    texts = [(entry["name"], (folder(run) / entry["file"]).read_text()) for entry in kept]
    assert texts == [("report.html", "first"), ("report.html", "second"), ("pictures/report.html", "first")]
    assert {Path(entry["file"]).name for entry in kept} == {"report.html"}


def everything(run: StageRun, out: Path) -> None:
    run.identify(raw=out.parent)
    assert list(run.epochs(RECORDS)) == RECORDS
    run.figures({"refused": 0})
    run.headline({"test_mean_iou": 0.5})
    run.dataset("train", "f" * 64, out, 3)
    run.artifacts(out / "report.html")
    run.end("FINISHED")


def test_without_tracking_the_reader_of_the_log_gets_the_records(tmp_path: Path) -> None:
    log = new_log(tmp_path / "state")
    run = StageRun(log=log)
    everything(run, tmp_path / "out")
    assert run.error is None
    told = [(event["kind"], event.get("values")) for event, _ in read(log)]
    epochs = [("epoch", {"loss": 2.5}), ("epoch", {"loss": 1.5})]
    assert told == [*epochs, ("figures", {"refused": 0.0}), ("headline", {"test_mean_iou": 0.5}), ("dataset", None)]
    assert not (tmp_path / "state/tracking").exists()


def test_a_tracked_stage_writes_into_the_log_that_it_was_given(tmp_path: Path) -> None:
    log = new_log(tmp_path)
    params = demo_params()
    sections = {"finetune": params.finetune, "runtime": params.runtime}
    run = StageRun(tmp_path / "tracking", "finetune", sections, {"experiment": "m", "started": 1}, log=log)
    run.identify(training="abc")
    run.figures({"refused": 0})
    assert run.error is None
    assert [event["kind"] for event, _ in read(log)] == ["begin", "figures"]
    assert [path.name for path in log.parent.iterdir()] == [log.name]


def test_without_a_root_nothing_is_recorded(tmp_path: Path) -> None:
    run = StageRun()
    everything(run, tmp_path)
    assert run.error is None
    assert list(tmp_path.iterdir()) == []


def test_an_error_is_kept_and_the_stage_continues(tmp_path: Path) -> None:
    params = demo_params()
    everywhere = StageRun(write(tmp_path / "file", "no folder"), "prepare", {"prepare": params.prepare})
    everything(everywhere, tmp_path / "out")
    assert isinstance(everywhere.error, OSError)

    missing_file = open_run(tmp_path / "tracking")
    everything(missing_file, tmp_path / "out")
    assert isinstance(missing_file.error, FileNotFoundError)
    kinds = [entry["kind"] for entry in entries(folder(missing_file))]
    assert kinds[-2:] == ["dataset", "end"]
