"""Runs a stage after the pool's machines have created its parts.

`meta.parts` in dvc.yaml is the name of the parameter that sets the number of parts. A part is data like any other: DVC
adds and pushes it on the machine where it was created, and pulls it here. The stage uses the parts that it finds and
creates the rest itself, so its command, hashes and output bytes are the same as without parts.
"""

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from flows.dag import Dag, Source, Stage
from flows.failure import Failure
from flows.remote import restore
from flows.sources import dvc, push_data
from flows.tasks import StageResult, reproduce
from flows.team.pools import WITHDRAWN, run_failure, start_run, wait_for
from flows.workplace import PARAMS, Workplace
from pspnet.machine.worktree import DVC_LOCK

DEPLOYMENT = "part/part"
PARTS = Path("data/parts")  # location while DVC adds or pulls parts: DVC does not see folders that git ignores
FETCHED = Path(".pspnet/parts")  # location afterward; ignored by git, so that read_dag does not treat parts as sources
IDLE_SECONDS = 60.0  # how long to wait for workers; an idle worker polls every 10 s


def reproduce_here(
    workplace: Workplace, stage: Stage, dag: Dag, environment: Mapping[str, str]
) -> StageResult | Failure:  # fmt: skip
    """Run the stage here. Uses parts if a pool can create them and no machine has run the whole stage already."""
    if stage.parts > 1 and dag.has_remote and os.environ.get("PSPNET_POOL"):
        known = restore(workplace, stage.name, environment)
        if isinstance(known, Failure):
            return known
        if not known:
            return _reproduce_from_parts(workplace, stage, dag, environment)
    return reproduce(workplace, stage, environment, dag.has_remote)


def _reproduce_from_parts(
    workplace: Workplace, stage: Stage, dag: Dag, environment: Mapping[str, str]
) -> StageResult | Failure:  # fmt: skip
    began = time.monotonic()
    made = _make(workplace, stage, dag.sources_of(stage), environment)
    if isinstance(made, Failure):
        return made
    if failure := _fetch(workplace, made, environment):
        return failure
    result = reproduce(workplace, stage, {**environment, "PSPNET_PARTS": str(workplace.folder / FETCHED)}, pull=True)
    clear_parts(workplace)
    if isinstance(result, Failure):
        return result
    return replace(result, seconds=time.monotonic() - began, where=f"here, from {len(made)} parts")


def clear_parts(workplace: Workplace) -> None:
    """Remove all parts, including those left behind by an attempt that was killed."""
    if workplace.is_worktree:
        for folder in (PARTS, FETCHED):
            shutil.rmtree(workplace.folder / folder, ignore_errors=True)


def _make(
    workplace: Workplace, stage: Stage, sources: Sequence[Source], environment: Mapping[str, str]
) -> dict[str, str] | Failure:
    """Let workers create the parts.

    Returns the .dvc files of the parts that workers took on. All workers may be waiting for us, so there may be none.
    """
    if failure := push_data(workplace.folder, sources, environment):
        return failure
    files = workplace.read(PARAMS, DVC_LOCK, *(source.file for source in sources))
    runs = []
    for number in range(1, stage.parts + 1):
        parameters = {"name": stage.name, "number": number, "of": stage.parts, "files": files}
        name, place = f"{stage.name} {number}/{stage.parts}", f"part-{number}"
        runs.append(start_run(DEPLOYMENT, name, parameters, place, workplace, environment))
    made = {}
    for number, run in enumerate(wait_for(runs, IDLE_SECONDS), start=1):
        if run.state and run.state.name == WITHDRAWN:
            continue
        if failure := run_failure(run):
            return failure
        assert run.state and run.state.message
        made[f"{part_folder(number, stage.parts)}.dvc"] = run.state.message
    return made


def part_folder(number: int, of: int) -> Path:
    return PARTS / f"{number}-of-{of}"


def _fetch(workplace: Workplace, files: Mapping[str, str], environment: Mapping[str, str]) -> Failure | None:
    clear_parts(workplace)
    if not files:
        return None
    workplace.write(files)
    failure = dvc(workplace.folder, environment, "pull", *files)
    if not failure:
        (workplace.folder / PARTS).replace(workplace.folder / FETCHED)
    return failure
