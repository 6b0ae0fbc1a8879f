"""Converts journal entries to objects for MLflow's client."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pspnet.machine.events import Event

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Metric

LONGEST_DIGEST = 36  # MLflow rejects longer values


def metrics(entry: Event) -> "list[Metric]":
    from mlflow.entities import Metric

    return [Metric(name, value, entry["time"], entry.get("step", 0)) for name, value in entry["values"].items()]


def dataset(entry: Event) -> "DatasetInput":
    from mlflow.entities import Dataset, DatasetInput, InputTag

    found = Dataset(
        name=f"{Path(entry['source']).name}/{entry['split']}",
        digest=entry["digest"][:LONGEST_DIGEST],
        source_type="local",
        source=json.dumps({"uri": entry["source"]}),
        profile=json.dumps({"images": entry["images"]}),
    )
    return DatasetInput(found, [InputTag("mlflow.data.context", entry["split"])])
