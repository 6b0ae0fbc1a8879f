"""A stage of which machines of the pool make parts first; `meta.parts` in dvc.yaml names the parameter for how many.

A part travels like any data: DVC adds and pushes it where it was made, and pulls it here. The stage takes what it finds
in the parts and makes the rest, so its command, its hashes and its bytes are what they are without.
"""

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from flows.dag import Dag, Source, Stage
from flows.data import dvc, push_data
from flows.ending import Trouble
from flows.pools import LOCK, WITHDRAWN, ended, failed, started
from flows.remote import restore
from flows.stages import Outcome, reproduce
from flows.workplace import PARAMS, Workplace

DEPLOYMENT = "part/part"
PARTS = Path("data/parts")  # in a worktree, while DVC works on them; it would not look where git does not
FETCHED = Path(".pspnet/parts")  # where git does not look: read_dag would take them for sources
IDLE_SECONDS = 60.0  # a free worker looks every 10 s


def reproduce_here(
    workplace: Workplace, stage: Stage, dag: Dag, environment: Mapping[str, str]
) -> Outcome | Trouble:  # fmt: skip
    """From parts, if there is a pool that could make them, and no machine has made the whole before."""
    if stage.parts > 1 and dag.has_remote and os.environ.get("PSPNET_POOL"):
        known = restore(workplace, stage.name, environment)
        if isinstance(known, Trouble):
            return known
        if not known:
            return _reproduce_from_parts(workplace, stage, dag, environment)
    return reproduce(workplace, stage, environment, dag.has_remote)


def _reproduce_from_parts(
    workplace: Workplace, stage: Stage, dag: Dag, environment: Mapping[str, str]
) -> Outcome | Trouble:  # fmt: skip
    began = time.monotonic()
    made = _made(workplace, stage, dag.sources_of(stage), environment)
    if isinstance(made, Trouble):
        return made
    if found := _fetch(workplace, made, environment):
        return found
    outcome = reproduce(workplace, stage, {**environment, "PSPNET_PARTS": str(workplace.folder / FETCHED)}, pull=True)
    clear(workplace)
    if isinstance(outcome, Trouble):
        return outcome
    return replace(outcome, seconds=time.monotonic() - began, where=f"here, from {len(made)} parts")


def clear(workplace: Workplace) -> None:
    """Also what an attempt has left that was killed."""
    if workplace.is_worktree:
        for folder in (PARTS, FETCHED):
            shutil.rmtree(workplace.folder / folder, ignore_errors=True)


def _made(
    workplace: Workplace, stage: Stage, sources: Sequence[Source], environment: Mapping[str, str]
) -> dict[str, str] | Trouble:
    """The .dvc files of the parts; not of those that no worker has taken, since they may all be waiting for us."""
    if found := push_data(workplace.folder, sources, environment):
        return found
    files = workplace.read(PARAMS, LOCK, *(source.file for source in sources))
    runs = []
    for number in range(1, stage.parts + 1):
        parameters = {"name": stage.name, "number": number, "of": stage.parts, "files": files}
        name, place = f"{stage.name} {number}/{stage.parts}", f"part-{number}"
        runs.append(started(DEPLOYMENT, name, parameters, place, workplace, environment))
    made = {}
    for number, run in enumerate(ended(runs, IDLE_SECONDS), start=1):
        if run.state and run.state.name == WITHDRAWN:
            continue
        if found := failed(run):
            return found
        assert run.state and run.state.message
        made[f"{folder_of(number, stage.parts)}.dvc"] = run.state.message
    return made


def folder_of(number: int, of: int) -> Path:
    return PARTS / f"{number}-of-{of}"


def _fetch(workplace: Workplace, files: Mapping[str, str], environment: Mapping[str, str]) -> Trouble | None:
    clear(workplace)
    if not files:
        return None
    workplace.write(files)
    found = dvc(workplace.folder, environment, "pull", *files)
    if not found:
        (workplace.folder / PARTS).replace(workplace.folder / FETCHED)
    return found
