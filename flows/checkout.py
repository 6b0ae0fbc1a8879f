"""Prefect's pull step: the deployed commit in a git worktree of this run, beside the worker's own clone."""

import os
from pathlib import Path

import pspnet
from flows.workplace import lay_out


def worktree(commit: str) -> dict[str, str]:
    """A stage of a run that goes on elsewhere is of that run's commit, which may not be the deployed one any more."""
    clone = Path(pspnet.__file__).parents[1]
    run = os.environ.get("PSPNET_RUN") or os.environ["PREFECT__FLOW_RUN_ID"]
    place = lay_out(clone, run, os.environ.get("PSPNET_COMMIT") or commit)
    return {"directory": str(place.folder)}
