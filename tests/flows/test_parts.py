"""Parts of a stage made in worktrees of their own and taken in another. Only Prefect's server is played."""

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

from flows import parts, pools, progress
from flows.dag import Stage, read_dag
from flows.data import bring_up_to_date
from flows.ending import Trouble
from flows.part import make_part, share
from flows.parts import FETCHED, PARTS, clear, folder_of, reproduce_here
from flows.pools import WITHDRAWN
from flows.stages import Outcome, reproduce
from flows.workplace import Workplace, lay_out
from pspnet.dataset.pieces import PIECE
from tests.command import pspnet
from tests.e2e.pipeline import checkout, digests, run
from tests.files import contents
from tests.flows.repository import dvc

# DVC asks pygtrie in a way of before.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")
IMAGES, PIECES = 2 * PIECE + 8, 3
Play = Callable[[int], State[Any]]


@dataclass
class Pool:
    """`play`: what becomes of a part."""

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
    """As flows.part does it, without its tasks."""
    place.write(files)
    environment, folder = place.environment(), folder_of(number, of)
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
    """DVC and the stages start at once."""
    monkeypatch.setattr(sys, "executable", warm_python)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each test works in worktrees of its own."""
    folder = checkout(tmp_path_factory.mktemp("checkout"), prepare__parts=PIECES)
    pspnet("synthesize", "data/raw", "--images", str(IMAGES), "--labelled", "30", cwd=folder)
    with dvc(folder) as repo:
        repo.add("data/raw")
    return folder


def reproduced(project: Path, name: str, pool: Pool, patch: pytest.MonkeyPatch) -> Outcome | Trouble:
    """`prepare`, in a worktree of this name."""
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
def test_a_part_that_fails_is_told_in_its_own_words(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def play(number: int) -> State[Any]:
        return Failed(name="Busy", message="part 2/3: a lock is held") if number == 2 else Cancelled(name=WITHDRAWN)

    found = reproduced(project, "fails", Pool(project, play), monkeypatch)
    assert found == Trouble("Busy", "part 2/3: a lock is held")


@pytest.mark.e2e
@pytest.mark.usefixtures("warm")
def test_from_parts_and_what_nobody_took_the_stage_makes_what_it_would_make_alone(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Pool(project, lambda number: Cancelled(name=WITHDRAWN) if number == 2 else Completed())
    given: list[str] = []

    def looking_on(place: Workplace, stage: Stage, environment: Mapping[str, str], pull: bool) -> Outcome | Trouble:
        given.extend(path.parent.name for path in Path(environment["PSPNET_PARTS"]).rglob("*.arrow"))
        return reproduce(place, stage, environment, pull)

    monkeypatch.setattr(parts, "reproduce", looking_on)
    outcome = reproduced(project, "whole", pool, monkeypatch)
    assert isinstance(outcome, Outcome), outcome
    assert (outcome.how, outcome.where, len(pool.asked)) == ("ran", "here, from 2 parts", PIECES)
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
    assert isinstance(known, Outcome), known
    assert (known.how, nobody.asked) == ("cached", {})
    assert digests(project / ".pspnet/runs/known") == digests(place)


@pytest.mark.e2e
@pytest.mark.usefixtures("warm")
def test_a_machine_without_a_pool_or_a_remote_checks_all_by_itself(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = Pool(project, lambda number: Failed())
    monkeypatch.delenv("PSPNET_POOL")
    alone = reproduced(project, "alone", nobody, monkeypatch)
    assert isinstance(alone, Outcome), alone
    assert (alone.where, nobody.asked) == ("here", {})


def test_what_a_killed_attempt_has_left_of_parts_is_no_data_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = checkout(tmp_path)
    place = lay_out(project, "killed", "HEAD")
    place.write({f"{PARTS}/1-of-3.dvc": "outs:\n- md5: 0\n  path: 1-of-3\n"})
    fetched = place.folder / FETCHED / "1-of-3/part.json"
    fetched.parent.mkdir(parents=True)
    fetched.write_text("{}")
    clear(place)
    monkeypatch.chdir(place.folder)
    assert [source.name for source in read_dag(place.folder).sources] == ["data/raw"]
    here = Workplace(project, project)
    (project / PARTS).mkdir()
    clear(here)
    assert (project / PARTS).exists()  # a person's
