"""Prefect's pull step: for each run, checks out the deployed commit in a separate git worktree."""

import os
from pathlib import Path

import pspnet
from flows.flow_attempt import NOT_LAID_OUT
from flows.workplace import lay_out
from pspnet.errors import PspnetError


def worktree(commit: str) -> dict[str, str]:
    """Create the run's worktree. A run started by another run uses that run's commit, not the deployed one."""
    clone = Path(pspnet.__file__).parents[1]
    run = os.environ.get("PSPNET_RUN") or os.environ["PREFECT__FLOW_RUN_ID"]
    try:
        place = lay_out(clone, run, os.environ.get("PSPNET_COMMIT") or commit)
    except (PspnetError, OSError) as error:
        # An error raised here would count as a crash and be retried immediately, forever. Instead, the run reports the
        # error and fails.
        os.environ[NOT_LAID_OUT] = str(error)
        return {"directory": str(clone)}
    return {"directory": str(place.folder)}
