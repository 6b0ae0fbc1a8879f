"""The registry in memory answers like MLflow's own store does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from pspnet.registry.versions import Versions
from pspnet.tracking.connection import connect
from tests.registry.memory import Registry

RUNS: dict[str, Any] = {
    "filter_string": "",
    "max_results": 9,
    "order_by": ["attributes.start_time ASC"],
    "page_token": None,
}


def answers(client: Any) -> list[Any]:
    """Return the client's answers to calls of each kind, including calls that fail."""
    seen: list[Any] = []

    def ask(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        try:
            answer = call(*arguments, **named)
        except MlflowException as error:
            answer = None
            seen.append((call.__name__, error.error_code))
        return answer

    home = ask(client.create_experiment, "m.promotions", None, tags={"a": "b"})
    claim = ask(client.create_experiment, "m.promotion.1", tags={"number": "1"})
    ask(client.create_experiment, "m.promotion.1", tags={"number": "2"})
    run, other = (ask(client.create_run, home, tags={"number": number}, run_name="r").info.run_id for number in "12")

    def read_all() -> None:
        found = client.search_experiments(filter_string="name LIKE 'm.promotion.%'", max_results=9)
        seen.append([(item.name, item.tags["number"], item.lifecycle_stage) for item in found])
        named = client.get_experiment_by_name("m.promotion.1")
        seen.append((named.lifecycle_stage, client.get_experiment(claim).lifecycle_stage))
        for text in ("", "tags.number = '2'"):
            runs = client.search_runs([home], **{**RUNS, "filter_string": text})
            seen.append([(item.data.tags["number"], item.data.tags.get("state")) for item in runs])
        model = client.get_registered_model("m")
        seen.append((dict(model.aliases), dict(model.tags)))

    read_all()
    ask(client.set_registered_model_alias, "m", "champion", "2")
    ask(client.set_registered_model_alias, "m", "champion", "3")
    ask(client.set_registered_model_tag, "m", "x", "1")
    ask(client.delete_registered_model_tag, "m", "nothing")
    ask(client.set_tag, run, "state", "done")
    ask(client.set_terminated, run, "FINISHED")
    ask(client.delete_run, other)
    ask(client.delete_run, other)
    ask(client.set_tag, other, "state", "done")
    ask(client.delete_experiment, claim)
    ask(client.delete_experiment, claim)
    ask(client.create_experiment, "m.promotion.1", tags={"number": "3"})
    seen.append(client.get_experiment_by_name("nothing"))
    read_all()
    ask(client.delete_registered_model_tag, "m", "x")
    ask(client.delete_registered_model_alias, "m", "champion")
    ask(client.delete_registered_model_alias, "m", "champion")
    read_all()
    return seen


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_the_registry_in_memory_answers_like_mlflow(
    database: str, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    client = connect(state)
    for number in (1, 2):
        Versions(client, state, "m").add(f"file:///nowhere/{number}", "", f"digest {number}", "", {})
    assert answers(Registry("m", versions={1: {}, 2: {}})) == answers(client)
