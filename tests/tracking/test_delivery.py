"""Journals delivered to a real database and a real server, with every kind of interruption."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from mlflow.tracking import MlflowClient

from pspnet.machine.events import FOLDER, append, event, new_log
from pspnet.tracking.backlog import journals, prune, replay
from pspnet.tracking.connection import connect
from pspnet.tracking.delivery import Delivery, lock
from pspnet.tracking.journal import JOURNAL, Journal
from pspnet.tracking.receipt import RECEIPT, Receipt
from tests.raw.rawdata import write
from tests.tracking.killer import in_child, make, send
from tests.tracking.runs import artifacts, history, inputs, new_journal, runs, the_run

EPOCHS = 30
LOSSES = [(step, 1 / step) for step in range(1, EPOCHS + 1)]


def finished(state: Path, model: str, epochs: int = EPOCHS, pipeline: str | None = "p") -> Journal:
    """Write the journal of a finished stage."""
    journal = new_journal(state / "tracking/finetune-1", model, pipeline)
    for step in range(1, epochs + 1):
        journal.add("epoch", step=step, values={"loss": 1 / step, "val_mean_iou": step / 100})
    journal.add("headline", values={"val_mean_iou": epochs / 100}, pipeline=pipeline)
    journal.add("dataset", split="train", digest="f" * 64, source="data/prepared", images=7)
    write(journal.folder / "artifacts/x/report.html", "<html>")
    journal.add("artifact", name="pages/report.html", file="artifacts/x/report.html")
    journal.add("end", attempt=journal.attempt, status="FINISHED", message="")
    return journal


def test_a_run_holds_everything_in_the_journal(client: MlflowClient, state: Path) -> None:
    journal = finished(state, "all")
    assert replay(state) == []
    run = the_run(client, "all")
    assert history(client, run, "loss") == LOSSES
    assert run.info.status == "FINISHED"
    assert run.data.params == {"finetune.epochs": "3"}
    assert artifacts(client, run) == {"pages/report.html"}
    (data,) = inputs(run)
    assert (data.dataset.name, data.dataset.digest) == ("prepared/train", "f" * 36)
    assert {tag.key: tag.value for tag in data.tags} == {"mlflow.data.context": "train"}
    parent = the_run(client, "all", "pipeline")
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (parent.data.metrics, parent.data.params) == ({"val_mean_iou": 0.3}, {"runtime.seed": "0"})
    assert parent.info.status == "FINISHED"
    assert not (journal.folder / "artifacts").exists()


def test_a_delivered_journal_is_not_sent_again(
    client: MlflowClient, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(state, "quick")
    replay(state)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert replay(state) == []  # the sender does not even connect


@pytest.mark.e2e
def test_replaying_nothing_does_not_load_mlflow(state: Path, tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from pspnet.tracking.backlog import replay;"
    code += f"assert replay(Path({str(state)!r})) == []; assert 'mlflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30, cwd=tmp_path)


@pytest.mark.parametrize("lost", [(RECEIPT,), ()])
def test_entries_sent_twice_are_stored_once(client: MlflowClient, state: Path, lost: tuple[str, ...]) -> None:
    model = f"again-{len(lost)}"
    journal = finished(state, model)
    replay(state)
    for name in lost:
        (journal.folder / name).unlink()
    again = new_journal(journal.folder, model, "p")
    again.add("epoch", step=EPOCHS, values={"loss": 99.0})  # this epoch was recorded before
    again.add("epoch", step=EPOCHS + 1, values={"loss": 0.0})
    assert replay(state) == []
    run = the_run(client, model)
    assert history(client, run, "loss") == [*LOSSES, (EPOCHS + 1, 0.0)]
    assert run.info.status == "RUNNING"
    assert run.data.tags["pspnet.attempts"] == "2"
    assert len(inputs(run)) == 1
    assert len(runs(client, model, "pipeline")) == 1


def test_two_processes_doing_the_same_work_record_each_epoch_once(client: MlflowClient, state: Path) -> None:
    """A new process works alongside an orphan, and neither process knows what the other writes."""
    folder = state / "tracking/finetune-1"
    orphan, new = new_journal(folder, "orphan"), new_journal(folder, "orphan")
    for journal in (orphan, new):
        for step in (1, 2, 3):
            journal.add("epoch", step=step, values={"loss": 1 / step})
    orphan.add("end", attempt=orphan.attempt, status="KILLED", message="")
    replay(state)
    run = the_run(client, "orphan")
    assert history(client, run, "loss") == LOSSES[:3]
    assert run.info.status == "RUNNING"


def test_nan_infinity_and_unicode_names_are_kept(client: MlflowClient, state: Path) -> None:
    journal = new_journal(state / "tracking/finetune-1", "numbers")
    values = {"nan": float("nan"), "inf": float("inf"), "test_iou/Straße 道路": 0.5}
    journal.add("figures", values=values)
    assert replay(state) == []
    replay(state)
    found = the_run(client, "numbers").data.metrics
    assert set(found) == set(values)
    assert found["nan"] != found["nan"]
    assert found["test_iou/Straße 道路"] == 0.5


def test_a_refused_entry_does_not_block_the_others(client: MlflowClient, state: Path) -> None:
    journal = new_journal(state / "tracking/finetune-1", "refused")
    for step in (1, 2, 3):
        bad = {"../loss": 1.0} if step == 2 else {}
        journal.add("epoch", step=step, values={"loss": 1 / step, **bad})
    journal.add("end", attempt=1, status="FINISHED", message="")
    assert replay(state) == []
    run = the_run(client, "refused")
    assert history(client, run, "loss") == [LOSSES[0], LOSSES[2]]
    assert run.info.status == "FINISHED"


def test_a_deleted_run_is_created_again(client: MlflowClient, state: Path) -> None:
    journal = finished(state, "deleted")
    replay(state)
    deleted = the_run(client, "deleted")
    client.delete_run(deleted.info.run_id)
    client.delete_run(the_run(client, "deleted", "pipeline").info.run_id)
    again = new_journal(journal.folder, "deleted", "p")
    again.add("epoch", step=EPOCHS + 1, values={"loss": 0.0})
    assert replay(state) == []
    run = the_run(client, "deleted")
    assert run.info.run_id != deleted.info.run_id
    assert history(client, run, "loss") == [*LOSSES, (EPOCHS + 1, 0.0)]
    assert run.data.tags["mlflow.parentRunId"] == the_run(client, "deleted", "pipeline").info.run_id


def test_a_run_deleted_during_delivery_is_created_again(client: MlflowClient, state: Path) -> None:
    journal = new_journal(state / "tracking/finetune-1", "gone")
    journal.add("epoch", step=1, values={"loss": 1.0})
    delivery = Delivery(state, journal.folder)
    delivery.send(connect(state))
    client.delete_run(the_run(client, "gone").info.run_id)
    journal.add("epoch", step=2, values={"loss": 0.5})
    delivery.read_journal()
    with pytest.raises(Exception, match="must be in the 'active' state"):
        delivery.send(client)
    delivery.send(client)
    assert history(client, the_run(client, "gone"), "loss") == LOSSES[:2]


def test_a_different_database_gets_everything(
    client: MlflowClient, state: Path, tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(empty_database, tmp_path / "other.db")
    journal = finished(state, "moved")
    replay(state)
    there = the_run(client, "moved").info.run_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    assert replay(state) == []  # the journal of a finished stage stays in place after delivery
    again = new_journal(journal.folder, "moved", "p")
    again.add("epoch", step=EPOCHS + 1, values={"loss": 0.0})
    assert replay(state) == []
    other = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    run = the_run(other, "moved")
    assert run.info.run_id != there
    assert history(other, run, "loss") == [*LOSSES, (EPOCHS + 1, 0.0)]
    assert history(client, the_run(client, "moved"), "loss") == LOSSES


def test_a_run_counts_as_killed_only_if_its_process_is_dead(client: MlflowClient, state: Path) -> None:
    me = psutil.Process()
    host = os.uname().nodename
    dead = {"host": host, "pid": me.pid, "created": me.create_time() - 1000}  # the process id was reused
    living = {"host": host, "pid": me.pid, "created": me.create_time()}
    new_journal(state / "tracking/finetune-1", "dead", "p", **dead)
    new_journal(state / "tracking/finetune-2", "living", "p", **living)
    new_journal(state / "tracking/finetune-3", "elsewhere")
    assert replay(state) == []
    assert [the_run(client, name).info.status for name in ("dead", "living", "elsewhere")] == [
        "KILLED",
        "RUNNING",
        "RUNNING",
    ]
    assert the_run(client, "dead").data.tags["pspnet.message"] == "The process was killed."
    assert the_run(client, "dead", "pipeline").info.status == "KILLED"


def test_a_pipeline_has_the_status_of_its_latest_stage_in_any_order_of_delivery(
    client: MlflowClient, state: Path
) -> None:
    first, last = new_journal(state / "tracking/b-1", "state", "p"), new_journal(state / "tracking/a-1", "state", "p")
    append(first.log, {"kind": "end", "time": 4_000_000_000_001, "attempt": 1, "status": "FINISHED", "message": ""})
    # This entry is sent first, although it ended last.
    append(last.log, {"kind": "end", "time": 4_000_000_000_002, "attempt": 1, "status": "FAILED", "message": "No."})
    replay(state)
    assert the_run(client, "state", "pipeline").info.status == "FAILED"


def test_work_continued_by_another_pipeline_moves_to_that_pipeline(client: MlflowClient, state: Path) -> None:
    """The stage is killed, the params of a later stage are changed, and the stage starts again."""
    new_journal(state / "tracking/finetune-1", "moves", "old").add("epoch", step=1, values={"loss": 1.0})
    replay(state)
    new_journal(state / "tracking/finetune-1", "moves", "new").add("epoch", step=2, values={"loss": 0.5})
    replay(state)
    parents = {parent.data.tags["pspnet.pipeline"]: parent.info for parent in runs(client, "moves", "pipeline")}
    run = the_run(client, "moves")
    assert history(client, run, "loss") == LOSSES[:2]
    assert run.data.tags["mlflow.parentRunId"] == parents["new"].run_id
    assert {key: parent.status for key, parent in parents.items()} == {"old": "KILLED", "new": "RUNNING"}


def test_a_locked_journal_is_left_alone(client: MlflowClient, state: Path) -> None:
    journal = finished(state, "locked")
    with lock(journal.folder):
        assert replay(state) == []
    assert runs(client, "locked") == []


def test_without_a_server_entries_are_kept_and_reported(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    journal = finished(state, "nowhere")
    (failure,) = replay(state)
    assert failure == (
        f"finetune-1: 36 records have not reached MLflow at http://me:***@127.0.0.1:9 (Connection refused); "
        f"kept in {journal.folder} and sent with the next run."
    )
    assert Delivery(state, journal.folder).pending


@pytest.mark.e2e
def test_a_partly_created_database_is_created_again(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "own/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    uri = os.environ["MLFLOW_TRACKING_URI"]
    assert in_child(make, uri, state, Path(f"{database}.partial")) == 3
    assert sorted(path.name for path in database.parent.iterdir()) == ["mlflow.db", "mlflow.lock"]
    journal = finished(state, "made-anew")
    Delivery(state, journal.folder).send(connect(state))
    client = MlflowClient(uri)
    assert history(client, the_run(client, "made-anew"), "loss") == LOSSES


@pytest.mark.e2e
def test_a_sender_killed_at_random_moments_makes_one_run_and_each_row_once(client: MlflowClient, state: Path) -> None:
    model = "killed"
    journal = finished(state, model)
    seed = int(os.environ.get("PSPNET_KILL_SEED", random.randrange(10_000)))
    kills = in_child(send, client.tracking_uri, state, journal.folder, seed)
    assert kills > 0, f"seed {seed}: no kill hit"
    run = the_run(client, model)
    assert history(client, run, "loss") == LOSSES, f"seed {seed}, {kills} kills"
    assert artifacts(client, run) == {"pages/report.html"}
    parent = the_run(client, model, "pipeline")
    assert history(client, parent, "val_mean_iou") == [(0, 0.3)]
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (run.info.status, parent.info.status) == ("FINISHED", "FINISHED")


def test_only_the_oldest_delivered_journals_are_removed(state: Path) -> None:
    for number in range(60):
        folder = state / f"tracking/finetune-{number:02}"
        new_journal(folder, "m")
        os.utime(folder / JOURNAL, (number, number))
        if number != 3:
            Receipt(journal="j", ended=True).write(folder)
    prune(state)
    left = {folder.name for folder in journals(state)}
    assert left == {"finetune-03", *(f"finetune-{number}" for number in range(10, 60))}


def test_logs_that_no_journal_names_are_removed_when_they_are_old(state: Path) -> None:
    named = new_journal(state / "tracking/finetune-1", "m").log
    unnamed, recent = new_log(state), new_log(state)
    for log in (named, unnamed):
        os.utime(log, (1, 1))
    prune(state)
    assert set((state / FOLDER).iterdir()) == {named, recent}


def test_a_journal_of_an_older_version_is_delivered(client: MlflowClient, state: Path) -> None:
    """Such a journal contains the records itself, and the format of its receipt is different."""
    folder = state / "tracking/finetune-1"
    folder.mkdir(parents=True)
    about = {"id": "older", "stage": "finetune", "key": "key", "params": {}, "experiment": "older", "started": 1}
    process = {"host": "another machine", "pid": 1, "created": 0.0}
    for entry in (
        event("journal", **about),
        event("begin", attempt=1, tags={}, started=1, process=process),
        event("epoch", step=1, values={"loss": 1.0}),
        event("end", attempt=1, status="FINISHED", message=""),
    ):
        append(folder / JOURNAL, entry)
    facts = {"journal": "older", "server": "s", "run_id": "r", "offset": 10, "ended": False, "trouble": "away"}
    write(folder / RECEIPT, json.dumps(facts))
    assert replay(state) == []
    run = the_run(client, "older")
    assert (history(client, run, "loss"), run.info.status) == ([(1, 1.0)], "FINISHED")
    assert Receipt.of(folder).ended
