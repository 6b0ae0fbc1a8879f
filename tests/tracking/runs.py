"""Reads the contents of MLflow runs and writes journals, for tests that compare both."""

from pathlib import Path
from typing import Any

from mlflow.entities import DatasetInput, Run
from mlflow.tracking import MlflowClient

from pspnet.machine.events import Event, new_log
from pspnet.tracking.journal import Journal, JournalReader
from pspnet.tracking.run import StageRun


def runs(client: MlflowClient, model: str, kind: str = "stage") -> list[Run]:
    """Return the runs of one experiment, oldest first."""
    experiment = client.get_experiment_by_name(model)
    if experiment is None:
        return []
    found = [experiment.experiment_id]
    return list(client.search_runs(found, f"tags.`pspnet.kind` = '{kind}'", order_by=["attributes.start_time"]))


def the_run(client: MlflowClient, model: str, kind: str = "stage") -> Run:
    (run,) = runs(client, model, kind)
    return run


def history(client: MlflowClient, run: Run, metric: str) -> list[tuple[int, float]]:
    """Return the step and value of every row of a metric."""
    rows = client.get_metric_history(run.info.run_id, metric)
    return sorted((row.step, row.value) for row in rows)


def inputs(run: Run) -> list[DatasetInput]:
    assert run.inputs
    return list(run.inputs.dataset_inputs)


def artifacts(client: MlflowClient, run: Run, folder: str | None = None) -> set[str]:
    found: set[str] = set()
    for item in client.list_artifacts(run.info.run_id, folder):
        found |= artifacts(client, run, item.path) if item.is_dir else {item.path}
    return found


def entries(folder: Path) -> list[Event]:
    """Return the entries of a journal, in order."""
    return [record.entry for record in JournalReader(folder).new()]


def new_journal(folder: Path, model: str, pipeline: str | None = None, **process: Any) -> Journal:
    """Return a journal as a stage opens it, with the begin entry of an attempt."""
    about = {"stage": "finetune", "key": "key", "params": {"finetune.epochs": "3"}, "experiment": model, "started": 1}
    journal = Journal(folder, new_log(folder.parent.parent), **about)
    attempt = {"pipeline": {"key": pipeline, "params": {"runtime.seed": "0"}}} if pipeline else {}
    attempt |= {"process": process or {"host": "another machine", "pid": 1, "created": 0.0}}
    journal.add("begin", attempt=journal.attempt, tags={"pspnet.host": "h"}, started=1, **attempt)
    return journal


def record_epochs(run: StageRun, first: int, last: int) -> None:
    for epoch in range(first, last + 1):
        run.epoch({"step": epoch, "epoch": epoch, "loss": 1 / epoch})


def losses(last: int) -> list[tuple[int, float]]:
    """Return the history that `record_epochs` writes."""
    return [(epoch, 1 / epoch) for epoch in range(1, last + 1)]
