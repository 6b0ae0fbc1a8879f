"""Journals against a real database and a real server, with everything that may come between."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from mlflow.tracking import MlflowClient

from pspnet.tracking.connection import connect
from pspnet.tracking.delivery import RECEIPT, Delivery, Receipt, journals, lock, prune, replay
from pspnet.tracking.journal import JOURNAL, Journal, append
from tests.dataset.rawdata import write
from tests.tracking.killer import in_child, make, send
from tests.tracking.told import artifacts, begun, history, inputs, runs, the_run

EPOCHS = 30
LOSSES = [(step, 1 / step) for step in range(1, EPOCHS + 1)]


def finished(state: Path, model: str, epochs: int = EPOCHS, pipeline: str | None = "p") -> Journal:
    """The journal of a stage that is over."""
    journal = begun(state / "tracking/finetune-1", model, pipeline)
    for step in range(1, epochs + 1):
        journal.add("epoch", step=step, values={"loss": 1 / step, "val_mean_iou": step / 100})
    journal.add("headline", values={"val_mean_iou": epochs / 100}, pipeline=pipeline)
    journal.add("dataset", split="train", digest="f" * 64, source="data/prepared", images=7)
    write(journal.folder / "artifacts/x/report.html", "<html>")
    journal.add("artifact", name="pages/report.html", file="artifacts/x/report.html")
    journal.add("end", attempt=journal.attempt, status="FINISHED", message="")
    return journal


def test_a_run_holds_all_that_was_told(client: MlflowClient, state: Path) -> None:
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


def test_nothing_is_sent_where_all_has_been(client: MlflowClient, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(state, "quick")
    replay(state)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert replay(state) == []  # it does not even ask


@pytest.mark.e2e
def test_replay_of_nothing_loads_no_mlflow(state: Path, tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from pspnet.tracking.delivery import replay;"
    code += f"assert replay(Path({str(state)!r})) == []; assert 'mlflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30, cwd=tmp_path)


@pytest.mark.parametrize("lost", [(RECEIPT,), ()])
def test_what_is_sent_again_is_there_once(client: MlflowClient, state: Path, lost: tuple[str, ...]) -> None:
    model = f"again-{len(lost)}"
    journal = finished(state, model)
    replay(state)
    for name in lost:
        (journal.folder / name).unlink()
    again = begun(journal.folder, model, "p")
    again.add("epoch", step=EPOCHS, values={"loss": 99.0})  # told before
    again.add("epoch", step=EPOCHS + 1, values={"loss": 0.0})
    assert replay(state) == []
    run = the_run(client, model)
    assert history(client, run, "loss") == [*LOSSES, (EPOCHS + 1, 0.0)]
    assert run.info.status == "RUNNING"
    assert run.data.tags["pspnet.attempts"] == "2"
    assert len(inputs(run)) == 1
    assert len(runs(client, model, "pipeline")) == 1


def test_two_processes_at_the_same_work_tell_each_epoch_once(client: MlflowClient, state: Path) -> None:
    """A new start beside an orphan: neither knows what the other writes."""
    folder = state / "tracking/finetune-1"
    orphan, new = begun(folder, "orphan"), begun(folder, "orphan")
    for journal in (orphan, new):
        for step in (1, 2, 3):
            journal.add("epoch", step=step, values={"loss": 1 / step})
    orphan.add("end", attempt=orphan.attempt, status="KILLED", message="")
    replay(state)
    run = the_run(client, "orphan")
    assert history(client, run, "loss") == LOSSES[:3]
    assert run.info.status == "RUNNING"


def test_numbers_that_are_none_are_kept_and_names_may_be_of_any_language(client: MlflowClient, state: Path) -> None:
    journal = begun(state / "tracking/finetune-1", "numbers")
    values = {"nan": float("nan"), "inf": float("inf"), "test_iou/Straße 道路": 0.5}
    journal.add("figures", values=values)
    assert replay(state) == []
    replay(state)
    found = the_run(client, "numbers").data.metrics
    assert set(found) == set(values)
    assert found["nan"] != found["nan"]
    assert found["test_iou/Straße 道路"] == 0.5


def test_a_record_that_the_server_refuses_holds_up_no_other(client: MlflowClient, state: Path) -> None:
    journal = begun(state / "tracking/finetune-1", "refused")
    for step in (1, 2, 3):
        bad = {"../loss": 1.0} if step == 2 else {}
        journal.add("epoch", step=step, values={"loss": 1 / step, **bad})
    journal.add("end", attempt=1, status="FINISHED", message="")
    assert replay(state) == []
    run = the_run(client, "refused")
    assert history(client, run, "loss") == [LOSSES[0], LOSSES[2]]
    assert run.info.status == "FINISHED"


def test_a_run_that_somebody_deleted_is_made_again(client: MlflowClient, state: Path) -> None:
    journal = finished(state, "deleted")
    replay(state)
    deleted = the_run(client, "deleted")
    client.delete_run(deleted.info.run_id)
    client.delete_run(the_run(client, "deleted", "pipeline").info.run_id)
    again = begun(journal.folder, "deleted", "p")
    again.add("epoch", step=EPOCHS + 1, values={"loss": 0.0})
    assert replay(state) == []
    run = the_run(client, "deleted")
    assert run.info.run_id != deleted.info.run_id
    assert history(client, run, "loss") == [*LOSSES, (EPOCHS + 1, 0.0)]
    assert run.data.tags["mlflow.parentRunId"] == the_run(client, "deleted", "pipeline").info.run_id


def test_a_run_that_is_deleted_while_it_is_sent_to_is_made_again(client: MlflowClient, state: Path) -> None:
    journal = begun(state / "tracking/finetune-1", "gone")
    journal.add("epoch", step=1, values={"loss": 1.0})
    delivery = Delivery(state, journal.folder)
    delivery.send(connect(state))
    client.delete_run(the_run(client, "gone").info.run_id)
    journal.add("epoch", step=2, values={"loss": 0.5})
    delivery.look()
    with pytest.raises(Exception, match="must be in the 'active' state"):
        delivery.send(client)
    delivery.send(client)
    assert history(client, the_run(client, "gone"), "loss") == LOSSES[:2]


def test_another_database_gets_everything(
    client: MlflowClient, state: Path, tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(empty_database, tmp_path / "other.db")
    journal = finished(state, "moved")
    replay(state)
    there = the_run(client, "moved").info.run_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    assert replay(state) == []  # what is over and delivered stays where it is
    again = begun(journal.folder, "moved", "p")
    again.add("epoch", step=EPOCHS + 1, values={"loss": 0.0})
    assert replay(state) == []
    other = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    run = the_run(other, "moved")
    assert run.info.run_id != there
    assert history(other, run, "loss") == [*LOSSES, (EPOCHS + 1, 0.0)]
    assert history(client, the_run(client, "moved"), "loss") == LOSSES


def test_a_dead_process_is_told_to_be_killed_and_a_living_one_is_not(client: MlflowClient, state: Path) -> None:
    me = psutil.Process()
    host = os.uname().nodename
    dead = {"host": host, "pid": me.pid, "created": me.create_time() - 1000}  # its number was given away again
    living = {"host": host, "pid": me.pid, "created": me.create_time()}
    begun(state / "tracking/finetune-1", "dead", "p", **dead)
    begun(state / "tracking/finetune-2", "living", "p", **living)
    begun(state / "tracking/finetune-3", "elsewhere")
    assert replay(state) == []
    assert [the_run(client, name).info.status for name in ("dead", "living", "elsewhere")] == [
        "KILLED",
        "RUNNING",
        "RUNNING",
    ]
    assert the_run(client, "dead").data.tags["pspnet.message"] == "The process was killed."
    assert the_run(client, "dead", "pipeline").info.status == "KILLED"


def test_a_pipeline_is_in_the_state_of_its_last_stage_whatever_is_sent_last(client: MlflowClient, state: Path) -> None:
    first, last = begun(state / "tracking/b-1", "state", "p"), begun(state / "tracking/a-1", "state", "p")
    path = first.folder / JOURNAL
    append(path, {"kind": "end", "time": 4_000_000_000_001, "attempt": 1, "status": "FINISHED", "message": ""})
    path = last.folder / JOURNAL  # sent first, ended last
    append(path, {"kind": "end", "time": 4_000_000_000_002, "attempt": 1, "status": "FAILED", "message": "No."})
    replay(state)
    assert the_run(client, "state", "pipeline").info.status == "FAILED"


def test_work_that_another_pipeline_takes_up_moves_there(client: MlflowClient, state: Path) -> None:
    """Killed, params of a later stage changed, started again."""
    begun(state / "tracking/finetune-1", "moves", "old").add("epoch", step=1, values={"loss": 1.0})
    replay(state)
    begun(state / "tracking/finetune-1", "moves", "new").add("epoch", step=2, values={"loss": 0.5})
    replay(state)
    parents = {parent.data.tags["pspnet.pipeline"]: parent.info for parent in runs(client, "moves", "pipeline")}
    run = the_run(client, "moves")
    assert history(client, run, "loss") == LOSSES[:2]
    assert run.data.tags["mlflow.parentRunId"] == parents["new"].run_id
    assert {key: parent.status for key, parent in parents.items()} == {"old": "KILLED", "new": "RUNNING"}


def test_a_journal_that_its_sender_is_at_is_left_alone(client: MlflowClient, state: Path) -> None:
    journal = finished(state, "locked")
    with lock(journal.folder):
        assert replay(state) == []
    assert runs(client, "locked") == []


def test_without_a_server_it_is_told_and_kept(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    journal = finished(state, "nowhere")
    (failure,) = replay(state)
    assert failure == (
        f"finetune-1: 36 records have not reached MLflow at http://me:***@127.0.0.1:9 (Connection refused); "
        f"kept in {journal.folder} and sent with the next run."
    )
    assert Delivery(state, journal.folder).pending


@pytest.mark.e2e
def test_a_database_is_made_anew_when_its_making_was_killed(
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


def test_only_delivered_journals_are_forgotten_the_oldest_first(state: Path) -> None:
    for number in range(60):
        folder = state / f"tracking/finetune-{number:02}"
        begun(folder, "m")
        os.utime(folder / JOURNAL, (number, number))
        if number != 3:
            Receipt(journal="j", ended=True).write(folder)
    prune(state)
    left = {folder.name for folder in journals(state)}
    assert left == {"finetune-03", *(f"finetune-{number}" for number in range(10, 60))}
