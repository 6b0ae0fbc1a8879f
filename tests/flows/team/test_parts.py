"""Parts of a stage are computed in separate worktrees, and another worktree uses them. Only
Prefect's server is a fake.
"""

import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging import disable_run_logger
from prefect.states import Cancelled, Completed, Failed, Scheduled

from flows import progress
from flows.dag import Stage, read_dag
from flows.failure import Failure
from flows.sources import bring_up_to_date
from flows.tasks import StageResult, reproduce
from flows.team import parts, pools
from flows.team.part_flow import make_part, share
from flows.team.parts import FETCHED, PARTS, clear_parts, part_folder, reproduce_here
from flows.team.pools import WITHDRAWN
from flows.workplace import Workplace, lay_out
from pspnet.raw.pieces import PIECE
from tests.command import pspnet
from tests.e2e.pipeline import checkout, digests, run
from tests.files import contents
from tests.flows.repository import dvc

# DVC uses pygtrie in a deprecated way.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")
IMAGES, PIECES = 2 * PIECE + 8, 3
Play = Callable[[int], State[Any]]


@dataclass
class Pool:
    """A pool that computes parts. `play` returns the final state of a part."""

    project: Path
    play: Play
    asked: dict[uuid.UUID, dict[str, Any]] = field(default_factory=dict)

    def run_deployment(self, name: str, **asked: Any) -> FlowRun:
        assert name == "part/part"
        run = FlowRun(flow_id=uuid.uuid4(), state=Scheduled())
        self.asked[run.id] = asked
        return run

    @contextmanager
    def client(self, **_: Any) -> Iterator["Pool"]:
        yield self

    def read_flow_run(self, number: uuid.UUID) -> FlowRun:
        parameters, own = (self.asked[number][name] for name in ("parameters", "job_variables"))
        state = self.play(parameters["number"])
        if state.is_completed():
            place = lay_out(self.project, own["env"]["PSPNET_RUN"], own["env"]["PSPNET_COMMIT"])
            state.message = made(place, **parameters)
        return FlowRun(id=number, flow_id=uuid.uuid4(), state=state)


def made(place: Workplace, name: str, number: int, of: int, files: dict[str, str]) -> str:
    """Compute a part as flows.team.part_flow does, without the flow's tasks. Returns the text of
    the part's .dvc file.
    """
    place.write(files)
    environment, folder = place.environment(), part_folder(number, of)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place.folder)
        dag = read_dag(place.folder)
    stage = dag.named(name)
    for source in dag.sources_of(stage):
        assert bring_up_to_date(place, source, environment, files, dag.has_remote) is None
    assert make_part(place, stage, f"{number}/{of}", folder, environment) is None
    assert share(place, folder, environment) is None
    return (place.folder / f"{folder}.dvc").read_text()


@pytest.fixture(autouse=True)
def _of_a_pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PSPNET_POOL", "cpu")
    monkeypatch.delenv("PSPNET_STATE", raising=False)
    for name in ("create_progress_artifact", "update_progress_artifact"):
        monkeypatch.setattr(progress, name, lambda *_, **__: None)
    with disable_run_logger():
        yield


@pytest.fixture
def warm(warm_python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make DVC and the stages start instantly."""
    monkeypatch.setattr(sys, "executable", warm_python)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout. Each test works in its own worktrees."""
    folder = checkout(tmp_path_factory.mktemp("checkout"), prepare__parts=PIECES)
    pspnet("synthesize", "data/raw", "--images", str(IMAGES), "--labeled", "30", cwd=folder)
    with dvc(folder) as repo:
        repo.add("data/raw")
    return folder


def reproduced(project: Path, name: str, pool: Pool, patch: pytest.MonkeyPatch) -> StageResult | Failure:
    """Reproduce `prepare` in a worktree called `name`."""
    place = lay_out(project, name, "HEAD")
    place.write({"data/raw.dvc": (project / "data/raw.dvc").read_text()})
    with dvc(place.folder) as repo:
        repo.checkout(["data/raw.dvc"])
    patch.setattr(pools, "run_deployment", pool.run_deployment)
    patch.setattr(pools, "get_client", pool.client)
    patch.chdir(place.folder)
    dag = read_dag(place.folder)
    return reproduce_here(place, dag.named("prepare"), dag, place.environment())


@pytest.mark.e2e
@pytest.mark.usefixtures("warm")
def test_a_failed_part_keeps_its_message(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def play(number: int) -> State[Any]:
        return Failed(name="Busy", message="part 2/3: a lock is held") if number == 2 else Cancelled(name=WITHDRAWN)

    found = reproduced(project, "fails", Pool(project, play), monkeypatch)
    assert found == Failure("Busy", "part 2/3: a lock is held")


@pytest.mark.e2e
@pytest.mark.usefixtures("warm")
def test_a_stage_gives_the_same_result_with_and_without_parts(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(project, lambda number: Cancelled(name=WITHDRAWN) if number == 2 else Completed())
    given: list[str] = []

    def watched(place: Workplace, stage: Stage, environment: Mapping[str, str], pull: bool) -> StageResult | Failure:
        given.extend(path.parent.name for path in Path(environment["PSPNET_PARTS"]).rglob("*.arrow"))
        return reproduce(place, stage, environment, pull)

    monkeypatch.setattr(parts, "reproduce", watched)
    result = reproduced(project, "whole", pool, monkeypatch)
    assert isinstance(result, StageResult), result
    assert (result.how, result.where, len(pool.asked)) == ("ran", "here, from 2 parts", PIECES)
    assert sorted(given) == ["1-of-3", "3-of-3"]
    monkeypatch.setattr(parts, "reproduce", reproduce)
    place = project / ".pspnet/runs/whole"
    assert not (place / PARTS).exists() and not (place / FETCHED).exists()
    changed = run(place, "git", "status", "--porcelain", "--", ".", ":(exclude)dvc.lock", ":(exclude)*.dvc")
    assert changed == ""

    alone = project / "alone"
    assert pspnet("prepare", "--raw", "data/raw", "--out", alone, cwd=project).returncode == 0
    assert contents(place / "data/prepared") == contents(alone)

    with dvc(place) as repo:
        repo.push(run_cache=True)
    nobody = Pool(project, lambda number: Failed())
    known = reproduced(project, "known", nobody, monkeypatch)
    assert isinstance(known, StageResult), known
    assert (known.how, nobody.asked) == ("cached", {})
    assert digests(project / ".pspnet/runs/known") == digests(place)


@pytest.mark.e2e
@pytest.mark.usefixtures("warm")
def test_a_machine_without_a_pool_makes_no_parts(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = Pool(project, lambda number: Failed())
    monkeypatch.delenv("PSPNET_POOL")
    alone = reproduced(project, "alone", nobody, monkeypatch)
    assert isinstance(alone, StageResult), alone
    assert (alone.where, nobody.asked) == ("here", {})


def test_parts_left_by_a_killed_attempt_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = checkout(tmp_path)
    place = lay_out(project, "killed", "HEAD")
    place.write({f"{PARTS}/1-of-3.dvc": "outs:\n- md5: 0\n  path: 1-of-3\n"})
    fetched = place.folder / FETCHED / "1-of-3/part.json"
    fetched.parent.mkdir(parents=True)
    fetched.write_text("{}")
    clear_parts(place)
    monkeypatch.chdir(place.folder)
    assert [source.name for source in read_dag(place.folder).sources] == ["data/raw"]
    here = Workplace(project, project)
    (project / PARTS).mkdir()
    clear_parts(here)
    assert (project / PARTS).exists()  # in a checkout, the folder may belong to a person
