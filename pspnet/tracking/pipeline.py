"""The pipeline run, the parent of its stages' runs. With the same params, data and code, the pipeline is the same."""

import getpass
import hashlib
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pspnet.config.params import Params
from pspnet.config.reading import read_yaml
from pspnet.errors import Problem, UserError
from pspnet.machine.code import CODE, code_digest
from pspnet.machine.credentials import hidden
from pspnet.tracking.connection import experiment
from pspnet.tracking.naming import flat

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

DVC = Path("dvc.yaml")
GIT_SECONDS = 5
FLOW_TAGS = {  # tag -> environment variable set by the flow that runs the stages
    "prefect.flow_run": "PSPNET_FLOW_RUN",
    "prefect.flow_run_page": "PSPNET_FLOW_RUN_PAGE",
    "pspnet.overrides": "PSPNET_FLOW_OVERRIDES",
}


def pipeline_key(params: Params) -> str:
    """The key that identifies a pipeline: a digest of params, raw data, dvc.yaml and the stages' code.

    PSPNET_PIPELINE overrides it.
    """
    if given := os.environ.get("PSPNET_PIPELINE"):
        if not re.fullmatch(r"[A-Za-z0-9._:-]{1,200}", given):
            raise UserError(Problem("PSPNET_PIPELINE", f"is '{given}'", "letters, digits and . _ : -"))
        return given
    facts = {
        "params": {name: getattr(params, name).model_dump(mode="json") for name in _sections(params)},
        "stages": DVC.read_text(encoding="utf-8") if DVC.exists() else "",
        "data": {path.as_posix(): path.read_text(encoding="utf-8") for path in data_sources()},
        "code": code_digest(part for parts in CODE.values() for part in parts),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def pipeline_params(params: Params) -> dict[str, str]:
    return {key: value for name in _sections(params) for key, value in flat(getattr(params, name), name).items()}


def pipeline_run(client: "MlflowClient", state: Path, params: Params, key: str) -> str:
    """The id of the pipeline run. If necessary, the run is created."""
    experiment_id = experiment(client, state, params.registry.model)
    now = time.time_ns() // 1_000_000
    run = ensure_pipeline(client, experiment_id, key, pipeline_params(params), circumstances(), now)
    return str(run.info.run_id)


def ensure_pipeline(
    client: "MlflowClient",
    experiment_id: str,
    key: str,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    started: int,
    kind: str = "pipeline",
) -> "Run":
    """The parent run with this key. `kind`: pipeline, or study."""
    tags = {**tags, "pspnet.kind": kind, "mlflow.source.name": "pspnet"}
    run = ensure_run(client, experiment_id, ("pspnet.pipeline", key), f"{kind}-{key[:8]}", tags, started)
    add_params(client, run, params)
    return run


def ensure_run(
    client: "MlflowClient", experiment_id: str, mark: tuple[str, str], name: str, tags: Mapping[str, str], started: int
) -> "Run":
    """The run with the tag `mark`. If necessary, the run is created.

    If two machines have created such a run at the same time, returns the oldest.
    """
    order = ["attributes.start_time", "attributes.run_id"]
    found = client.search_runs([experiment_id], f"tags.`{mark[0]}` = '{mark[1]}'", max_results=1, order_by=order)
    return found[0] if found else client.create_run(experiment_id, started, {**tags, mark[0]: mark[1]}, name)


def add_params(client: "MlflowClient", run: "Run", params: Mapping[str, str]) -> None:
    """Log the params that the run does not have yet. MLflow does not allow changing a param."""
    from mlflow.entities import Param

    new = [Param(name, value) for name, value in params.items() if name not in run.data.params]
    for start in range(0, len(new), 100):  # the maximum number in one request
        client.log_batch(run.info.run_id, params=new[start : start + 100])


def log_metrics(client: "MlflowClient", run_id: str, values: Mapping[str, float]) -> None:
    """Log the metrics in one request, so that the database writes to disk only once."""
    from mlflow.entities import Metric

    now = time.time_ns() // 1_000_000
    client.log_batch(run_id, metrics=[Metric(name, value, now, 0) for name, value in values.items()])


def circumstances() -> dict[str, str]:
    """Tags with the commit, host, user and flow run of this run, as far as they are known."""
    tags = {"mlflow.source.type": "LOCAL", "pspnet.host": platform.node()}
    if (commit := _git("rev-parse", "HEAD")) is not None:
        # DVC writes dvc.lock and *.dvc files while the pipeline runs, so changes to them do not make the commit dirty.
        changes = _git("status", "--porcelain", "--", ".", ":(exclude)dvc.lock", ":(exclude)*.dvc")
        tags |= {"mlflow.source.git.commit": commit, "mlflow.source.git.dirty": str(changes != "").lower()}
    with suppress(KeyError, OSError):  # a container's user may have no name
        tags["mlflow.user"] = getpass.getuser()
    tags |= {tag: os.environ[name] for tag, name in FLOW_TAGS.items() if os.environ.get(name)}
    if page := tags.get("prefect.flow_run_page"):
        tags["mlflow.note.content"] = f"[Flow run in Prefect]({page})"
    return {name: hidden(value) for name, value in tags.items()}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=GIT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _stages() -> dict[str, Any]:
    return dict(read_yaml(DVC)["stages"]) if DVC.exists() else {}


def _sections(params: Params) -> list[str]:
    """The sections of the params that stages read. How models are compared and served does not change the pipeline."""
    read = {name for stage in _stages().values() for name in stage.get("params", [])}
    return [name for name in type(params).model_fields if name in read or not read]


def data_sources() -> list[Path]:
    """The .dvc files of the stages' input data."""
    paths = {Path(f"{dependency}.dvc") for stage in _stages().values() for dependency in stage.get("deps", [])}
    return sorted(path for path in paths if path.is_file())
