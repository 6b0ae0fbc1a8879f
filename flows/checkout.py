"""Prefect's pull step: the deployed commit in a git worktree of this run, beside the worker's own clone."""

import os
from pathlib import Path

import pspnet
from flows.attempts import NOT_LAID_OUT
from flows.workplace import lay_out
from pspnet.errors import PspnetError


def worktree(commit: str) -> dict[str, str]:
    """A stage of a run that goes on elsewhere is of that run's commit, which may not be the deployed one any more."""
    clone = Path(pspnet.__file__).parents[1]
    run = os.environ.get("PSPNET_RUN") or os.environ["PREFECT__FLOW_RUN_ID"]
    try:
        place = lay_out(clone, run, os.environ.get("PSPNET_COMMIT") or commit)
    except (PspnetError, OSError) as error:
        # Raised here it would be a crash, which is tried again at once and for ever: the run tells it, and fails.
        os.environ[NOT_LAID_OUT] = str(error)
        return {"directory": str(clone)}
    return {"directory": str(place.folder)}
