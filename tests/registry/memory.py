"""The part of an MLflow server that the audit uses, in memory: the same calls, answers and errors, each atomic."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_ALREADY_EXISTS, RESOURCE_DOES_NOT_EXIST

ACTIVE, DELETED = "active", "deleted"
WRITES = frozenset({
    "create_experiment", "delete_experiment", "restore_experiment", "create_run", "set_tag", "set_terminated",
    "delete_run", "set_registered_model_alias", "delete_registered_model_alias", "set_registered_model_tag",
    "delete_registered_model_tag", "set_model_version_tag",
})  # fmt: skip


@dataclass
class Item:
    """An experiment or a run."""

    number: int
    name: str
    tags: dict[str, str]
    stage: str = ACTIVE
    home: str = ""


@dataclass
class Registry:
    """One model, with the methods of MLflow's client."""

    model: str
    experiments: list[Item] = field(default_factory=list)
    runs: list[Item] = field(default_factory=list)
    aliases: dict[str, int] = field(default_factory=dict)
    versions: dict[int, dict[str, str]] = field(default_factory=dict)  # version number -> tags
    tags: dict[str, str] = field(default_factory=dict)

    def copy(self) -> "Registry":
        experiments, runs = ([replace(t, tags={**t.tags}) for t in items] for items in (self.experiments, self.runs))
        versions = {number: {**tags} for number, tags in self.versions.items()}
        return Registry(self.model, experiments, runs, {**self.aliases}, versions, {**self.tags})

    def content(self) -> str:
        named = sorted(self.aliases.items()), sorted(self.tags.items())
        return repr((self.experiments, self.runs, self.versions, named))

    def create_experiment(self, name: str, location: str | None = None, tags: Mapping[str, str] | None = None) -> str:
        if any(experiment.name == name for experiment in self.experiments):
            raise MlflowException(f"Experiment(name={name}) already exists.", RESOURCE_ALREADY_EXISTS)
        self.experiments.append(Item(len(self.experiments), name, {**(tags or {})}))
        return str(len(self.experiments) - 1)

    def get_experiment(self, experiment_id: str) -> Any:
        found = self.experiments[int(experiment_id)]
        tags = {**found.tags}
        return SimpleNamespace(experiment_id=str(found.number), name=found.name, tags=tags, lifecycle_stage=found.stage)

    def get_experiment_by_name(self, name: str) -> Any:
        found = [experiment.number for experiment in self.experiments if experiment.name == name]
        return self.get_experiment(str(found[0])) if found else None

    def delete_experiment(self, experiment_id: str) -> None:
        if self.experiments[int(experiment_id)].stage == DELETED:
            raise MlflowException(f"No Experiment with id={experiment_id} exists", RESOURCE_DOES_NOT_EXIST)
        self.experiments[int(experiment_id)].stage = DELETED

    def restore_experiment(self, experiment_id: str) -> None:
        self.experiments[int(experiment_id)].stage = ACTIVE

    def search_experiments(self, filter_string: str, max_results: int) -> list[Any]:
        prefix = filter_string.removeprefix("name LIKE '").removesuffix("%'")
        found = [t.number for t in self.experiments if t.stage == ACTIVE and t.name.startswith(prefix)]
        return [self.get_experiment(str(number)) for number in reversed(found)][:max_results]

    def create_run(self, home: str, tags: Mapping[str, str], run_name: str) -> Any:
        self.runs.append(Item(len(self.runs), run_name, {**tags}, home=home))
        return self.get_run(str(len(self.runs) - 1))

    def get_run(self, run_id: str) -> Any:
        found = self.runs[int(run_id)]
        info = SimpleNamespace(run_id=run_id, lifecycle_stage=found.stage)
        return SimpleNamespace(info=info, data=SimpleNamespace(tags={**found.tags}))

    def search_runs(
        self, homes: list[str], filter_string: str, max_results: int, order_by: list[str], page_token: str | None
    ) -> Any:
        assert (order_by, page_token) == (["attributes.start_time ASC"], None)
        number = filter_string.removeprefix("tags.number = '").removesuffix("'")
        found = [t for t in self.runs if t.stage == ACTIVE and t.home in homes and number in ("", t.tags.get("number"))]
        return Page(self.get_run(str(run.number)) for run in found)

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self._active(run_id).tags[key] = str(value)

    def set_terminated(self, run_id: str, status: str) -> None:
        self._active(run_id)

    def delete_run(self, run_id: str) -> None:
        self.runs[int(run_id)].stage = DELETED

    def get_registered_model(self, name: str) -> Any:
        return SimpleNamespace(aliases={**self.aliases}, tags={**self.tags})

    def set_registered_model_tag(self, name: str, key: str, value: str) -> None:
        self.tags[key] = value

    def delete_registered_model_tag(self, name: str, key: str) -> None:
        self.tags.pop(key, None)

    def search_model_versions(self, filter_string: str, max_results: int, page_token: str | None) -> Any:
        return Page(
            SimpleNamespace(version=str(number), tags={**tags}, creation_timestamp=0, run_id="", source="")
            for number, tags in self.versions.items()
        )

    def set_registered_model_alias(self, name: str, alias: str, number: str) -> None:
        if int(number) not in self.versions:
            raise MlflowException(f"Model Version (version={number}) not found", RESOURCE_DOES_NOT_EXIST)
        self.aliases[alias] = int(number)

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        self.aliases.pop(alias, None)

    def set_model_version_tag(self, name: str, number: str, key: str, value: str) -> None:
        self.versions[int(number)][key] = value

    def _active(self, run_id: str) -> Item:
        found = self.runs[int(run_id)]
        if found.stage == DELETED:
            raise MlflowException(f"The run {run_id} must be in the 'active' state.", INVALID_PARAMETER_VALUE)
        return found


class Page(list[Any]):
    token = None
