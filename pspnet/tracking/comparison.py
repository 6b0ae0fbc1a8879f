"""`pspnet runs`: lists pipeline runs with their scores and the params that differ between them."""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from pspnet.config.params import load_params
from pspnet.errors import Busy
from pspnet.machine import terminal
from pspnet.machine.credentials import hidden
from pspnet.tracking.backlog import replay
from pspnet.tracking.connection import SQLITE, connect, fail_fast, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities import Run

CLASS = "test_iou/"  # prefix of per-class metrics
SHORT = 8  # characters of a run id to show
LONGEST = 60  # characters of a param's value to show
STATES = {"FINISHED": "done", "RUNNING": "running", "FAILED": "failed", "KILLED": "stopped"}
STYLES = {"done": "green", "running": "cyan", "failed": "red"}
DIFFERS = "what differs"
NARROWEST = 24  # minimum number of columns for the name of a param


def runs(params: Path, state: Path, limit: int, classes: bool, as_json: bool) -> None:
    model = load_params(params).registry.model
    failures = replay(state)
    pipelines, stages = _search(state, model, limit, with_stages=as_json)
    for failure in failures:
        terminal.err.print(failure, style="yellow", markup=False)
    if as_json:
        print(json.dumps([_facts(run, stages) for run in pipelines], indent=2, ensure_ascii=False))  # noqa: T201
    elif not pipelines:
        where = hidden(tracking_uri(state))
        terminal.err.print(f"{where} has no runs of {model} yet. Start one with `make retrain`.")
    else:
        rows = _rows(pipelines, classes)
        table = _table(rows)
        anywhere = terminal.out.options.update(max_width=100_000)
        fits = terminal.out.measure(table, options=anywhere).minimum <= terminal.out.width
        terminal.out.print(table if fits else _list(rows))


def send(state: Path) -> None:
    """Send the records that could not be sent because a server was down, instead of leaving them to the next run."""
    if failures := replay(state):
        raise Busy("\n".join(failures))


def _search(state: Path, model: str, limit: int, with_stages: bool) -> "tuple[Sequence[Run], Sequence[Run]]":
    """The newest pipeline runs and, if `with_stages`, the runs of their stages."""
    uri = tracking_uri(state)
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
        return [], []
    with fail_fast(state):
        client = connect(state)
        experiment = client.get_experiment_by_name(model)
        if experiment is None:
            return [], []
        found = [experiment.experiment_id]
        newest, oldest = ["attributes.start_time DESC"], ["attributes.start_time"]
        pipelines = client.search_runs(found, "tags.`pspnet.kind` = 'pipeline'", order_by=newest, max_results=limit)
        parents = [f"tags.`mlflow.parentRunId` = '{run.info.run_id}'" for run in pipelines if with_stages]
        stages = [stage for parent in parents for stage in client.search_runs(found, parent, order_by=oldest)]
    return pipelines, stages


def _facts(run: "Run", stages: "Sequence[Run]") -> dict[str, Any]:
    tags = run.data.tags
    return {
        "run_id": run.info.run_id,
        "pipeline": tags["pspnet.pipeline"],
        "status": run.info.status,
        "started": _time(run.info.start_time).isoformat(),
        "ended": _time(run.info.end_time).isoformat() if run.info.end_time else None,
        "version": tags.get("pspnet.version"),
        "metrics": {name: value if math.isfinite(value) else None for name, value in run.data.metrics.items()},
        "params": run.data.params,
        "tags": {name: value for name, value in tags.items() if not name.startswith("mlflow.")},
        "commit": tags.get("mlflow.source.git.commit"),
        "dirty": tags.get("mlflow.source.git.dirty") == "true",
        "stages": [
            {"stage": stage.data.tags["pspnet.stage"], "run_id": stage.info.run_id, "status": stage.info.status}
            for stage in stages
            if stage.data.tags["mlflow.parentRunId"] == run.info.run_id
        ],
    }


def _rows(pipelines: "Sequence[Run]", classes: bool) -> list[dict[str, str]]:
    """A row of cells for each run, by column title."""
    every = {name for run in pipelines for name in run.data.metrics}
    scores = {"val mIoU": "val_mean_iou", "test mIoU": "test_mean_iou"}
    scores |= {name.removeprefix(CLASS): name for name in sorted(every) if classes and name.startswith(CLASS)}
    differing = _differing([run.data.params for run in pipelines])
    rows = []
    for run in pipelines:
        row = {
            "when": f"{_time(run.info.start_time).astimezone():%Y-%m-%d %H:%M}",
            "run": run.info.run_id[:SHORT],
            "state": STATES.get(run.info.status, run.info.status.lower()),
        }
        row |= {title: _score(run.data.metrics.get(name)) for title, name in scores.items()}
        row["version"] = run.data.tags.get("pspnet.version", "")
        row[DIFFERS] = "\n".join(f"{name}: {run.data.params.get(name, '')[:LONGEST]}" for name in differing)
        rows.append(row)
    return rows


def _table(rows: list[dict[str, str]]) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    titles = [title for title in rows[0] if any(row[title] for row in rows)]
    for title in titles:
        if title == DIFFERS:
            table.add_column(title, overflow="fold", min_width=NARROWEST)
        else:
            text = title in ("when", "run", "state")
            table.add_column(escape(title.replace(" ", "\n")), justify="left" if text else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(_styled(title, row[title]) for title in titles))
    return table


def _list(rows: list[dict[str, str]]) -> str:
    """The rows as lines, for a terminal that is too narrow for the table."""
    blocks = []
    for row in rows:
        head = "  ".join(_styled(title, row[title]) for title in ("when", "run", "state"))
        rest = [f"  {escape(f'{title}: {text}')}" for title, text in list(row.items())[3:-1] if text]
        blocks.append("\n".join([head, *rest, *(f"  {escape(line)}" for line in row[DIFFERS].splitlines())]))
    return "\n".join(blocks)


def _styled(title: str, text: str) -> str:
    return f"[{STYLES[text]}]{text}[/]" if title == "state" and text in STYLES else escape(text)


def _differing(several: Sequence[Mapping[str, str]]) -> list[str]:
    """The names of the params that differ between the runs."""
    names = dict.fromkeys(name for params in several for name in params)
    return [name for name in names if len({params.get(name) for params in several}) > 1]


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
