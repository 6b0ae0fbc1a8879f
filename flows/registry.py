"""What comes after the stages, outside DVC: the registry is no function of the stages' inputs."""

import json
from collections.abc import Mapping
from typing import Any

from prefect import get_run_logger

from flows.commands import run
from flows.ending import FAILED, Trouble, trouble
from flows.workplace import Workplace


def send_records(workplace: Workplace, environment: Mapping[str, str]) -> Trouble | None:
    """To MLflow, of a machine that may have no other stage to run for long."""
    return trouble(run(["pspnet", "runs", "--send"], workplace.folder, environment, get_run_logger().warning), None)


def pspnet(workplace: Workplace, environment: Mapping[str, str], *words: str) -> dict[str, Any] | Trouble:
    """A command of ours that ends with a line of JSON; the rest of what it says goes to the log."""
    answers: list[dict[str, Any]] = []

    def tell(line: str) -> None:
        if line.startswith("{"):
            answers.append(json.loads(line))
        else:
            get_run_logger().info(line)

    ended = run(["pspnet", *words, "--json"], workplace.folder, environment, tell)
    if answers:
        return answers[-1]
    return trouble(ended, None) or Trouble(FAILED, f"pspnet {words[0]} has said nothing.")
