"""The DVC remote: what was made here is known everywhere, and what was made elsewhere here."""

import sys
from collections.abc import Mapping

from prefect import get_run_logger

from flows.commands import run
from flows.ending import NOT_KNOWN, Trouble, trouble
from flows.workplace import Workplace
from pspnet.worktree import dvc_command


def push(workplace: Workplace, environment: Mapping[str, str]) -> Trouble | None:
    """With the run-cache: by it another machine knows what it need not run."""
    command = dvc_command("--wait-for-lock", "push", "--run-cache")
    return trouble(run(command, workplace.folder, environment, get_run_logger().info), None)


def restore(workplace: Workplace, stage: str, environment: Mapping[str, str]) -> bool | Trouble:
    """Whether some machine has run this stage on these inputs; then its results are here now."""
    command = [sys.executable, "-P", "-m", "flows.restore", stage]
    ended = run(command, workplace.folder, environment, get_run_logger().info)
    if ended.status in (0, NOT_KNOWN):
        return ended.status == 0
    found = trouble(ended, None)
    assert found
    return found
