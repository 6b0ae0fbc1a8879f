"""Commands that change the registry and MLflow, outside DVC: the registry is not a function of the stages' inputs."""

import json
from collections.abc import Mapping
from typing import Any

from prefect import get_run_logger

from flows.command import run
from flows.failure import FAILED, Failure, failure_of
from flows.workplace import Workplace


def send_records(workplace: Workplace, environment: Mapping[str, str]) -> Failure | None:
    """Send unsent records to MLflow now: this machine may not run another stage for a long time."""
    return failure_of(run(["pspnet", "runs", "--send"], workplace.folder, environment, get_run_logger().warning), None)


def registry_command(workplace: Workplace, environment: Mapping[str, str], *words: str) -> dict[str, Any] | Failure:
    """Run `pspnet WORDS --json`. Returns its JSON line; all other lines go to the log."""
    answers: list[dict[str, Any]] = []

    def on_line(line: str) -> None:
        if line.startswith("{"):
            answers.append(json.loads(line))
        else:
            get_run_logger().info(line)

    ended = run(["pspnet", *words, "--json"], workplace.folder, environment, on_line)
    if answers:
        return answers[-1]
    return failure_of(ended, None) or Failure(FAILED, f"pspnet {words[0]} printed no JSON.")
