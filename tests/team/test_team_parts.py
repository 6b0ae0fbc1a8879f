"""A pool checks the raw data in parts while its runs are killed."""

import psutil
import pytest
from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelling

from pspnet.raw.pieces import PIECE
from tests.command import pspnet
from tests.e2e.pipeline import digests, run
from tests.team.team import SOON_SECONDS, Plain, Team, command, kill, works_in

pytestmark = [pytest.mark.team, pytest.mark.timeout(1200)]

PARTS = 3
IMAGES = PARTS * PIECE  # one piece for each part


def parts(team: Team) -> dict[str, FlowRun]:
    """Return the run of each part, keyed by part, such as '1/3'."""
    runs = team.client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=["part"])))
    return {one.name.split()[1]: one for one in runs}


def prepared(team: Team, flow_run: FlowRun) -> bool:
    tasks = team.client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run.id])))
    states = [one.state for one in tasks if one.name == "prepare"]
    assert not any(state.is_failed() for state in states if state), team.log(flow_run)
    return any(state.is_completed() for state in states if state)


def at_work_on(team: Team, part: str) -> psutil.Process:
    """Return Prefect's process for the run that computes this part, once the part has started."""
    found: list[psutil.Process] = []

    def begun() -> bool:
        own = [one for one in team.processes("cpu") if {"--part", part} <= set(command(one))]
        found[:] = [parent for one in own for parent in one.parents() if is_engine(parent)]
        return bool(found)

    team.until(begun, SOON_SECONDS, f"part {part} has not started")
    return found[0]


def is_engine(process: psutil.Process) -> bool:
    return any(word.startswith("prefect.") for word in command(process))


def test_parts_survive_the_kill_of_a_part_and_of_the_waiting_run(team: Team, plain: Plain) -> None:
    run(team.cpu, "rm", "-r", "data/raw")
    pspnet("synthesize", "data/raw", "--images", str(IMAGES), "--labeled", "40", cwd=team.cpu)
    flow_run = team.retrain(prepare__parts=PARTS)
    kill(at_work_on(team, "2/3"))
    team.until(
        lambda: {parts(team)[name].state_name for name in ("1/3", "3/3")} == {"Completed"}, SOON_SECONDS, "others wait"
    )
    place = team.cpu / ".pspnet/runs" / str(flow_run.id)
    kill(*(one for one in team.processes("cpu") if is_engine(one) and works_in(one, place)))

    alone = plain.made("prepare", prepare__parts=1)
    team.until(lambda: prepared(team, flow_run), 400, lambda: f"it was not prepared:\n{team.log(flow_run)}")
    made = parts(team)
    assert {name: (one.state_name, one.run_count, one.work_pool_name) for name, one in made.items()} == {
        "1/3": ("Completed", 1, "cpu"),
        "2/3": ("Completed", 2, "cpu"),
        "3/3": ("Completed", 1, "cpu"),
    }
    assert team.client.read_flow_run(flow_run.id).run_count == 2
    assert digests(place)["data/prepared"] == alone["data/prepared"]
    assert not (place / "data/parts").exists()
    team.client.set_flow_run_state(flow_run.id, Cancelling())  # everything else is as without parts
    team.finished(flow_run, SOON_SECONDS)
    team.until(lambda: not team.processes(), SOON_SECONDS, "processes are left")
