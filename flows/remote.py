"""Uses the DVC remote to share the results computed here, and to restore results computed on other machines."""

import sys
from collections.abc import Mapping

from prefect import get_run_logger

from flows.command import run
from flows.failure import NOT_KNOWN, Failure, failure_of
from flows.workplace import Workplace
from pspnet.machine.worktree import dvc_command


def push(workplace: Workplace, environment: Mapping[str, str]) -> Failure | None:
    """Push the results and the run-cache, so that other machines need not repeat the work."""
    command = dvc_command("--wait-for-lock", "push", "--run-cache")
    return failure_of(run(command, workplace.folder, environment, get_run_logger().info), None)


def restore(workplace: Workplace, stage: str, environment: Mapping[str, str]) -> bool | Failure:
    """Restore the stage's results if any machine has run the stage on these inputs. Returns whether one has."""
    command = [sys.executable, "-P", "-m", "flows.restore", stage]
    ended = run(command, workplace.folder, environment, get_run_logger().info)
    if ended.status in (0, NOT_KNOWN):
        return ended.status == 0
    failure = failure_of(ended, None)
    assert failure
    return failure
