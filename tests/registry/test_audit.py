import signal
import socket
from dataclasses import dataclass, replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pspnet.errors import UserError
from pspnet.registry.audit import OTHER_HOST_SECONDS, Audit, Clock, Overtaken
from pspnet.registry.claimant import system
from pspnet.registry.records import Move, ProposedMove, previous_champion, withdrawal
from pspnet.registry.versions import Versions
from pspnet.tracking.connection import connect
from tests.forked import FORKED
from tests.registry.mover import move
from tests.registry.moves import make_move
from tests.waiting import wait_until

SECONDS = 60
MOMENTS = 8  # number of moments in each history, because long histories are slow to read
# With both databases, and without the mark e2e.
killed_in_both = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)


@dataclass
class Mover:
    process: BaseProcess
    talk: Connection

    def wait(self) -> str | None:
        """Return what the process printed, or None if the process was killed."""
        try:
            output: str | None = self.talk.recv() if self.talk.poll(SECONDS) else None
        except EOFError:
            output = None
        self.process.join(SECONDS)
        return output


class Fast:
    """A clock that advances a hundred seconds for each second of sleep, without waiting."""

    seconds = 0.0

    def sleep(self, seconds: float) -> None:
        self.seconds += 100 * seconds

    def clock(self) -> Clock:
        return Clock(lambda: self.seconds, self.sleep)


class AuditedRegistry:
    """A registry with eight empty versions."""

    def __init__(self, uri: str, state: Path, name: str) -> None:
        self.uri, self.state, self.name = uri, state, name
        self.client = connect(state)
        self.versions = Versions(self.client, state, name)
        for number in range(1, 9):
            self.versions.add(f"file:///nowhere/{number}", "", f"digest {number}", "", {})
        self.warnings: list[str] = []
        self.time = Fast()
        self.audit = Audit(self.client, state, self.versions, self.warnings.append, self.time.clock())

    def another(self, number: int) -> "AuditedRegistry":
        """Return a registry in the same database with a new history, since every move reads the whole history."""
        return AuditedRegistry(self.uri, self.state, f"{self.name}-{number}")

    def ready(
        self, version: int, expected: int | None = None, moment: int | None = None, fails: int = signal.SIGKILL
    ) -> Mover:
        """Start a process that has connected and waits for `go`."""
        ours, theirs = FORKED.Pipe()
        state = self.state.parent / f"host-{version}"  # hosts share only the database
        arguments: tuple[Any, ...] = (self.uri, state, self.name, version, expected, moment, int(fails), theirs)
        process = FORKED.Process(target=move, args=arguments, daemon=True)
        process.start()
        theirs.close()
        assert ours.poll(SECONDS)
        assert ours.recv() == "ready"
        return Mover(process, ours)

    @property
    def champion(self) -> int:
        return self.versions.alias("champion") or 0

    def promote(self, version: int, contended: bool = False) -> Move:
        return make_move(self.audit, ProposedMove("promotion", version, ""), contended)

    def assert_in_order(self) -> list[Move]:
        """Check that no number is missing, that each move starts where the last one ended, and that the alias agrees
        with the last move.
        """
        moves = self.audit.moves()
        assert [move.number for move in moves] == list(range(1, len(moves) + 1))
        done = [move for move in moves if move.state == "done"]
        assert [move.from_version for move in done] == [0, *(move.to_version for move in done)][: len(done)]
        assert self.champion == (done[-1].to_version if done else 0)
        assert not self.client.search_experiments(filter_string=f"name LIKE '{self.name}.promotion.%'")
        return moves


@pytest.fixture
def registry(database: str, state: Path, monkeypatch: pytest.MonkeyPatch) -> AuditedRegistry:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    return AuditedRegistry(database, state, "streets")


def race(movers: list[Mover]) -> list[str]:
    for mover in movers:
        mover.talk.send("go")
    return [mover.wait() or "" for mover in movers]


@pytest.mark.e2e
def test_each_number_is_won_by_one_of_eight_processes(registry: AuditedRegistry) -> None:
    outputs = race([registry.ready(version) for version in range(1, 9)])
    moves = registry.assert_in_order()
    assert [move.state for move in moves] == ["done"] * 8
    assert sorted(move.to_version for move in moves) == list(range(1, 9))
    assert all("moved" in text for text in outputs)
    assert any("was won by" in text for text in outputs)  # otherwise the processes never competed


@pytest.mark.e2e
def test_a_process_that_expected_a_different_champion_stops(registry: AuditedRegistry) -> None:
    outputs = race([registry.ready(version, expected=0) for version in range(1, 9)])
    (move,) = registry.assert_in_order()
    assert sum("stopped: the champion is" in text for text in outputs) == 7
    assert move.to_version == registry.champion


@pytest.mark.kills
@pytest.mark.timeout(900)
@killed_in_both
def test_a_move_killed_at_any_step_is_finished_by_the_next(registry: AuditedRegistry) -> None:
    moment = 0
    while True:
        if moment % MOMENTS == 0:
            registry = registry.another(moment)
            registry.promote(1)
        before, version = registry.champion, 2 + moment % 7
        mover = registry.ready(version, moment=moment)
        (output,) = race([mover])
        registry.audit.settle()
        registry.assert_in_order()
        assert registry.champion in (before, version)
        if output:
            break
        assert mover.process.exitcode == -signal.SIGKILL
        moment += 1
    assert moment > 15, "a move makes more calls than were tried"
    assert registry.champion == version


def falls_asleep(mover: Mover) -> bool:
    """Return True if the process is suspended, and False if it has ended."""

    def found() -> str:
        try:
            status = psutil.Process(mover.process.pid).status()
        except psutil.NoSuchProcess:
            return psutil.STATUS_ZOMBIE
        return status if status in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE) else ""

    return wait_until(found, SECONDS) == psutil.STATUS_STOPPED


@pytest.mark.kills
@pytest.mark.timeout(900)
@killed_in_both
def test_a_process_that_wakes_up_late_undoes_no_later_move(registry: AuditedRegistry) -> None:
    """A process is suspended at any step, presumed dead, and wakes up when a different version is champion."""
    moment = 0
    while True:
        if moment % MOMENTS == 0:
            registry = registry.another(moment)
        sleeper = registry.ready(1 + moment % 4, moment=moment, fails=signal.SIGSTOP)
        sleeper.talk.send("go")
        asleep = falls_asleep(sleeper)
        registry.promote(5 + moment % 4, contended=True)
        if not asleep:
            break
        psutil.Process(sleeper.process.pid).send_signal(signal.SIGCONT)
        assert sleeper.wait() is not None
        registry.audit.settle()
        assert [move.state for move in registry.assert_in_order()].count("abandoned") == 0
        moment += 1
    assert moment > 15


def test_an_alias_moved_by_other_means_is_recorded_and_kept(registry: AuditedRegistry) -> None:
    registry.promote(1)
    registry.versions.set_alias("champion", 5)
    registry.audit.settle()
    moves = registry.assert_in_order()
    assert (moves[-1].kind, moves[-1].from_version, moves[-1].to_version) == ("outside", 1, 5)
    registry.versions.remove_alias("champion")
    registry.audit.settle()
    assert registry.assert_in_order()[-1].to_version == 0


def history(*steps: tuple[str, int]) -> list[Move]:
    champion, moves = 0, []
    for number, (kind, version) in enumerate(steps, start=1):
        moves.append(Move(number, kind, champion, version, "ann", "noon", "", "", "h", "1@2", state="done"))  # type: ignore[arg-type]
        champion = version
    return moves


def killed_after_its_claim(registry: AuditedRegistry, move: Move) -> None:
    """Leave the traces of a process that dies between its claim and its record."""
    gone = replace(move, pid="1@0.0", system=move.system or system())
    assert registry.audit.ledger.claim(gone)


def wanted(registry: AuditedRegistry, kind: str, start: int, to: int) -> Move:
    number = len(registry.audit.moves()) + 1
    (move,) = history((kind, to))
    return replace(move, number=number, from_version=start, host=socket.gethostname(), state="pending")


def test_a_move_is_abandoned_if_the_champion_changes_meanwhile(registry: AuditedRegistry) -> None:
    attempts = registry.audit.attempts()
    position = next(attempts)
    registry.versions.set_alias("champion", 5)
    overtaken = registry.audit.apply(ProposedMove("promotion", 2, ""), position)
    assert isinstance(overtaken, Overtaken)
    assert "was abandoned because the champion was already 5" in overtaken.why
    again = next(attempts)
    assert (position.champion, again.champion) == (0, 5)
    done = registry.audit.apply(ProposedMove("promotion", 2, ""), again)
    assert isinstance(done, Move)
    assert (done.from_version, done.state) == (5, "done")
    assert [move.state for move in registry.audit.moves()] == ["abandoned", "done", "done"]


def test_an_unfinished_record_of_an_outside_move_writes_nothing(registry: AuditedRegistry) -> None:
    registry.promote(1)
    killed_after_its_claim(registry, wanted(registry, "outside", 1, 5))
    registry.audit.settle()
    assert registry.champion == 1
    assert registry.assert_in_order()[-1].state == "abandoned"


def test_a_process_on_a_host_of_the_same_name_is_waited_for(registry: AuditedRegistry) -> None:
    """The process may be in another container, so it proves nothing that its pid is unused here."""
    elsewhere = replace(wanted(registry, "promotion", 0, 3), system="another kernel pid:[1]")
    killed_after_its_claim(registry, elsewhere)
    registry.audit.settle()
    assert registry.time.seconds > OTHER_HOST_SECONDS
    assert registry.champion == 3


def test_the_audit_does_not_wait_for_a_process_that_has_ended_on_this_host(registry: AuditedRegistry) -> None:
    killed_after_its_claim(registry, wanted(registry, "promotion", 0, 3))
    registry.audit.settle()
    assert (registry.time.seconds, registry.champion) == (0, 3)


def test_mlflow_client_sends_the_alias_once(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other requests are repeated by the client when a server is busy."""
    for name, value in {"MAX_RETRIES": "2", "BACKOFF_FACTOR": "0", "BACKOFF_JITTER": "0"}.items():
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)
    asked: list[str] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(HTTPStatus.OK, b'{"registered_model": {"name": "streets"}}')

        def do_POST(self) -> None:
            asked.append(self.path.partition("/mlflow/")[2])
            tag = asked[-1] == "registered-models/set-tag"
            self.answer(HTTPStatus.OK if tag else HTTPStatus.SERVICE_UNAVAILABLE, b"{}")

        def answer(self, status: HTTPStatus, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("localhost", 0), Server) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        uri = f"http://localhost:{server.server_port}"
        versions = Versions(MlflowClient(uri, registry_uri=uri), state, "streets")
        audit = Audit(versions.client, state, versions, pytest.fail)
        with pytest.raises(MlflowException):
            audit.alias.write(3)
        with pytest.raises(MlflowException):
            versions.set_tags(3, {"a": "b"})
        server.shutdown()
        thread.join()
    assert asked == ["registered-models/set-tag", "registered-models/alias", *["model-versions/set-tag"] * 3]


def test_a_version_set_back_outside_pspnet_is_kept_with_a_warning(registry: AuditedRegistry) -> None:
    for version in (1, 2):
        registry.promote(version)
    registry.versions.set_alias("champion", 1)
    registry.audit.settle()
    assert registry.assert_in_order()[-1].to_version == 1
    (warning,) = registry.warnings
    assert "went from version 2 to version 1 outside pspnet, and is left there" in warning
    assert "`pspnet rollback --to 2` undoes it" in warning


def test_a_move_to_a_version_that_was_deleted_is_abandoned(registry: AuditedRegistry) -> None:
    registry.promote(1)
    killed_after_its_claim(registry, wanted(registry, "promotion", 1, 3))
    registry.client.delete_model_version(registry.name, "3")
    registry.audit.settle()
    assert registry.assert_in_order()[-1].note == "version 3 was already gone"


def test_a_claim_or_the_audit_deleted_by_a_person_stops_nothing(registry: AuditedRegistry) -> None:
    registry.promote(1)
    killed_after_its_claim(registry, wanted(registry, "promotion", 1, 3))
    (claim, _), *_ = registry.audit.ledger.claims()
    registry.client.delete_experiment(claim.experiment_id)
    home = registry.client.get_experiment_by_name(f"{registry.name}.promotions")
    assert home
    registry.client.delete_experiment(home.experiment_id)
    done = registry.promote(2)
    assert (done.from_version, done.state, registry.champion) == (1, "done", 2)


def test_rollbacks_in_a_row_go_back_further() -> None:
    moves = history(("promotion", 1), ("promotion", 2), ("promotion", 3))
    assert previous_champion(moves, [1, 2, 3]) == 2
    assert previous_champion(moves, [1, 3]) == 1  # version 2 was deleted
    moves = history(("promotion", 1), ("promotion", 2), ("promotion", 3), ("rollback", 2))
    assert previous_champion(moves, [1, 2, 3]) == 1
    moves = history(("promotion", 1), ("promotion", 2), ("rollback", 1), ("promotion", 3))
    assert previous_champion(moves, [1, 2, 3]) == 1
    with pytest.raises(UserError, match="no earlier champion"):
        previous_champion(history(("promotion", 1)), [1])


def test_a_rolled_back_version_is_withdrawn_until_it_is_champion_again() -> None:
    moves = history(("promotion", 1), ("promotion", 2), ("rollback", 1))
    assert withdrawal(moves, 2) == "version 2 was rolled back by ann at noon"
    assert withdrawal(moves, 1) is None
    assert withdrawal([*moves, *history(("promotion", 2))], 2) is None
