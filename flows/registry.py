"""Runs the commands that change the registry and MLflow.

DVC does not run them, because the registry is not a function of the stages' inputs.
"""

from collections.abc import Mapping
from typing import Any

from prefect import get_run_logger

from flows.command import run
from flows.failure import FAILED, Failure, failure_of
from flows.workplace import Workplace


def send_records(workplace: Workplace, environment: Mapping[str, str]) -> Failure | None:
    """Send unsent records to MLflow now, because this machine may not run another stage for a long time."""
    return failure_of(run(["pspnet", "runs", "--send"], workplace.folder, environment, get_run_logger().warning), None)


def registry_command(workplace: Workplace, environment: Mapping[str, str], *words: str) -> dict[str, Any] | Failure:
    """Run `pspnet WORDS` and return the result. That a version is not promoted is also a result, not a failure."""
    ended = run(["pspnet", *words], workplace.folder, environment, get_run_logger().info)
    return ended.result or failure_of(ended, None) or Failure(FAILED, f"pspnet {words[0]} reported no result.")
