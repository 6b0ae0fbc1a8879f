"""What `stage_run` sends, writes and reports, with a sender in pytest's process. test_processes.py
uses a real sender.
"""

import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pspnet.errors import Interrupted, Problem, UserError
from pspnet.tracking.attempt import stage_run
from pspnet.tracking.backlog import journals
from pspnet.tracking.delivery import Delivery
from pspnet.tracking.run import StageRun
from tests.parameters import demo_params
from tests.raw.rawdata import write
from tests.tracking.runs import artifacts, history, inputs, losses, record_epochs, runs, the_run
from tests.tracking.sender import Inline


@contextmanager
def stage(state: Path, model: str, warnings: list[str], out: Path | None = None) -> Iterator[StageRun]:
    """Run a stage that has already identified its work."""
    params = demo_params(registry__model=model)
    with stage_run(state, "finetune", params, ("finetune", "runtime"), out, warnings.append, Inline) as run:
        run.identify(training="digest")
        yield run


def test_a_run_holds_everything_that_its_stage_recorded(client: MlflowClient, state: Path, tmp_path: Path) -> None:
    warnings: list[str] = []
    with stage(state, "whole", warnings, tmp_path / "runs/finetune.json") as run:
        record_epochs(run, 1, 3)
        run.dataset("train", "f" * 64, tmp_path / "prepared", 7)
        run.figures({"seconds": 1.5})
        run.headline({"val_mean_iou": 0.25})
        run.artifacts(write(tmp_path / "history.csv", "epoch,loss\n"))
    assert warnings == []
    found, parent = the_run(client, "whole"), the_run(client, "whole", "pipeline")
    assert found.info.status == parent.info.status == "FINISHED"
    assert history(client, found, "loss") == losses(3)
    assert found.data.metrics["seconds"] == 1.5
    assert found.data.params["finetune.optimizer.learning_rate"] == "0.004"
    assert artifacts(client, found) == {"history.csv"}
    assert [item.dataset.digest for item in inputs(found)] == ["f" * 36]
    assert found.data.metrics["system/cpu_utilization_percentage"] >= 0
    assert parent.data.metrics == {"val_mean_iou": 0.25}
    record = json.loads((tmp_path / "runs/finetune.json").read_text())
    assert (record["run_id"], record["pipeline"]) == (found.info.run_id, parent.data.tags["pspnet.pipeline"])
    assert record["machine"]["host"] == os.uname().nodename


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError(Problem("here", "is wrong")), "FAILED", "here: is wrong"),
        (ZeroDivisionError(), "FAILED", "ZeroDivisionError"),
        (Interrupted(130, "Stopped after step 7."), "KILLED", "Stopped after step 7."),
    ],
)
def test_a_run_says_how_its_stage_ended(
    database: str, state: Path, tmp_path: Path, error: Exception, status: str, message: str
) -> None:
    client, model, warnings = MlflowClient(database), f"error-{type(error).__name__}", list[str]()
    with pytest.raises(type(error)), stage(state, model, warnings, tmp_path / "record.json") as run:
        record_epochs(run, 1, 2)
        raise error
    assert warnings == []
    run_found, parent = the_run(client, model), the_run(client, model, "pipeline")
    assert run_found.info.status == parent.info.status == status
    assert run_found.data.tags["pspnet.message"] == message
    assert not (tmp_path / "record.json").exists()

    with stage(state, model, warnings) as run:
        record_epochs(run, 1, 3)
    again = the_run(client, model)
    assert (again.info.run_id, again.info.status) == (run_found.info.run_id, "FINISHED")
    assert (again.data.tags["pspnet.message"], again.data.tags["pspnet.attempts"]) == ("", "2")
    assert history(client, again, "loss") == losses(3)
    steps = [step for step, _ in history(client, again, "system/cpu_utilization_percentage")]
    assert steps == list(range(len(steps)))
    assert len(steps) >= 2


class WaitRecorder:
    """A sender that only records how long the stage would have waited for the sender."""

    seconds: float

    def __init__(self, state: Path) -> None:
        pass

    def follow(self, folder: Path) -> None:
        pass

    def finish(self, seconds: float) -> int | None:
        type(self).seconds = seconds
        return 0


@pytest.mark.parametrize(
    ("error", "shortest", "longest"),
    [
        (None, 111, 130),  # longer than a sender takes to give up on its own
        (UserError(Problem("here", "is wrong")), 111, 130),
        (Interrupted(130), 1, 5),
        (KeyboardInterrupt(), 1, 5),
    ],
)
def test_only_ctrl_c_hurries_the_sender(
    state: Path, error: BaseException | None, shortest: float, longest: float
) -> None:
    params = demo_params(registry__model="hurried")
    try:
        with stage_run(state, "finetune", params, ("finetune",), None, lambda text: None, WaitRecorder) as run:
            run.identify(training="digest")
            if error:
                raise error
    except BaseException as raised:
        assert raised is error
    assert shortest <= WaitRecorder.seconds <= longest


def test_a_stage_does_not_wait_for_a_broken_journal(state: Path, tmp_path: Path) -> None:
    params = demo_params(registry__model="broken")
    with stage_run(state, "finetune", params, ("finetune",), None, lambda text: None, WaitRecorder) as run:
        run.identify(training="digest")
        run.artifacts(tmp_path / "missing.html")
    assert WaitRecorder.seconds <= 5


def test_a_later_stage_sends_the_records_of_an_earlier_one(
    database: str, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        with stage(state, "brings", warnings, tmp_path / "record.json") as run:
            record_epochs(run, 1, 2)
    assert len(warnings) == 1
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["run_id"] is None
    params = demo_params(registry__model="brings")
    with stage_run(state, "evaluate", params, ("evaluate",), None, warnings.append, Inline) as run:
        run.identify(bundle="digest")
    assert not any(Delivery(state, folder).pending for folder in journals(state))
    assert len(warnings) == 1
    found = {run.info.run_name: run for run in runs(MlflowClient(database), "brings")}
    assert {name: run.info.status for name, run in found.items()} == {"finetune": "FINISHED", "evaluate": "FINISHED"}
    assert found["finetune"].data.tags["pspnet.journal"] == record["journal"]


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("http://127.0.0.1:9", "Connection refused"),
        ("http://no-such-host.invalid", "Name or service not known|Temporary failure|No address"),
        ("rubbish://me:secret@nowhere", "unsupported URI"),
        ("http://[rubbish", "URL|Invalid"),
        ("sqlite:////proc/no/such/folder/mlflow.db", "unable to open|No such file"),
    ],
)
def test_an_unreachable_server_costs_seconds_and_one_line(
    uri: str, why: str, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    warnings: list[str] = []
    with stage(state, "unreachable", warnings) as run:
        record_epochs(run, 1, 2)
    (line,) = warnings
    assert line.startswith("finetune: finetune-")
    assert re.search(why, line), line
    assert "secret" not in line
    assert line.endswith("and sent with the next run.")
    assert [len(Delivery(state, folder).pending) for folder in journals(state)] == [5]


def test_a_silent_server_costs_seconds_and_one_line(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    warnings: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with stage(state, "silent", warnings) as run:
            record_epochs(run, 1, 2)
    (line,) = warnings
    assert "timed out" in line


def test_an_unwritable_folder_is_reported_in_one_line(state: Path) -> None:
    warnings: list[str] = []
    write(state / "tracking", "no folder")
    params = demo_params(registry__model="unwritable")
    with stage_run(state, "finetune", params, ("finetune",), None, warnings.append) as run:
        run.identify(training="digest")
        record_epochs(run, 1, 2)
    (line,) = warnings
    assert line.startswith("finetune: this run is not tracked (")


def test_an_error_in_the_middle_is_reported_in_one_line(database: str, state: Path, tmp_path: Path) -> None:
    warnings: list[str] = []
    with stage(state, "disk", warnings, tmp_path / "record.json") as run:
        record_epochs(run, 1, 1)
        run.artifacts(tmp_path / "missing.html")
        record_epochs(run, 2, 2)
    (line,) = warnings
    assert line == "finetune: this run is only partly tracked (No such file or directory)."
    client = MlflowClient(database)
    assert history(client, the_run(client, "disk"), "loss") == losses(2)
    assert (tmp_path / "record.json").exists()


def test_tracking_can_be_switched_off(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSPNET_TRACKING", "off")
    warnings: list[str] = []
    params = demo_params(registry__model="off")
    with stage_run(state, "finetune", params, ("finetune",), tmp_path / "record.json", warnings.append) as run:
        run.identify(training="digest")
        record_epochs(run, 1, 2)
    assert (warnings, state.exists()) == ([], False)
    assert json.loads((tmp_path / "record.json").read_text())["run_id"] is None
    monkeypatch.setenv("PSPNET_TRACKING", "no")
    with pytest.raises(UserError, match="PSPNET_TRACKING: is 'no'; expected on or off"), stage(state, "off", warnings):
        pass
