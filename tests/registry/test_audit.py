import signal
import socket
from dataclasses import dataclass, replace
from functools import partial
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
from pspnet.registry.audit import (
    OTHER_HOST_SECONDS,
    Audit,
    Clock,
    Move,
    Wish,
    _system,
    previous_champion,
    withdrawal,
)
from pspnet.registry.versions import Versions
from pspnet.tracking.connection import connect
from tests.forked import FORKED
from tests.registry.mover import move
from tests.waiting import wait_until

SECONDS = 60
MOMENTS = 8  # to each history: longer ones are slow to read
killed_in_both = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)  # neither is e2e


@dataclass
class Mover:
    process: BaseProcess
    talk: Connection

    def wait(self) -> str | None:
        """What it told; None if it was killed."""
        try:
            told: str | None = self.talk.recv() if self.talk.poll(SECONDS) else None
        except EOFError:
            told = None
        self.process.join(SECONDS)
        return told


class Fast:
    """Whoever sleeps for a second wakes up after a hundred, at once."""

    seconds = 0.0

    def sleep(self, seconds: float) -> None:
        self.seconds += 100 * seconds

    def clock(self) -> Clock:
        return Clock(lambda: self.seconds, self.sleep)


class Shop:
    """A registry with eight empty versions."""

    def __init__(self, uri: str, state: Path, name: str) -> None:
        self.uri, self.state, self.name = uri, state, name
        self.client = connect(state)
        self.versions = Versions(self.client, state, name)
        for number in range(1, 9):
            self.versions.add(f"file:///nowhere/{number}", "", f"digest {number}", "", {})
        self.told: list[str] = []
        self.time = Fast()
        self.audit = Audit(self.client, state, self.versions, self.told.append, self.time.clock())

    def another(self, number: int) -> "Shop":
        """Of the same database, with a history of its own, which every move reads."""
        return Shop(self.uri, self.state, f"{self.name}-{number}")

    def ready(
        self, version: int, expected: int | None = None, moment: int | None = None, fails: int = signal.SIGKILL
    ) -> Mover:
        """A process that has connected and waits for `go`."""
        ours, theirs = FORKED.Pipe()
        state = self.state.parent / f"host-{version}"  # hosts share nothing but the database
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

    def assert_in_order(self) -> list[Move]:
        """Every number once, each move starting where the last one ended, and the alias where the last one went."""
        moves = self.audit.moves()
        assert [move.number for move in moves] == list(range(1, len(moves) + 1))
        done = [move for move in moves if move.state == "done"]
        assert [move.from_version for move in done] == [0, *(move.to_version for move in done)][: len(done)]
        assert self.champion == (done[-1].to_version if done else 0)
        assert not self.client.search_experiments(filter_string=f"name LIKE '{self.name}.promotion.%'")
        return moves


@pytest.fixture
def shop(database: str, state: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    return Shop(database, state, "streets")


def promote(version: int, _: int) -> Wish:
    return Wish("promotion", version, "")


def race(movers: list[Mover]) -> list[str]:
    for mover in movers:
        mover.talk.send("go")
    return [mover.wait() or "" for mover in movers]


@pytest.mark.e2e
def test_of_eight_processes_one_wins_each_number(shop: Shop) -> None:
    told = race([shop.ready(version) for version in range(1, 9)])
    moves = shop.assert_in_order()
    assert [move.state for move in moves] == ["done"] * 8
    assert sorted(move.to_version for move in moves) == list(range(1, 9))
    assert all("moved" in text for text in told)
    assert any("was won by" in text for text in told)  # else they did not meet


@pytest.mark.e2e
def test_who_expected_another_champion_stops(shop: Shop) -> None:
    told = race([shop.ready(version, expected=0) for version in range(1, 9)])
    (move,) = shop.assert_in_order()
    assert sum("stopped: the champion is" in text for text in told) == 7
    assert move.to_version == shop.champion


@pytest.mark.kills
@pytest.mark.timeout(900)
@killed_in_both
def test_a_move_killed_at_any_step_is_mended_by_the_next(shop: Shop) -> None:
    moment = 0
    while True:
        if moment % MOMENTS == 0:
            shop = shop.another(moment)
            shop.audit.move(lambda _: Wish("promotion", 1, "the first"), lost=pytest.fail)
        before, version = shop.champion, 2 + moment % 7
        mover = shop.ready(version, moment=moment)
        (told,) = race([mover])
        shop.audit.settle()
        shop.assert_in_order()
        assert shop.champion in (before, version)
        if told:
            break
        assert mover.process.exitcode == -signal.SIGKILL
        moment += 1
    assert moment > 15, "a move consists of more calls than were hit"
    assert shop.champion == version


def falls_asleep(mover: Mover) -> bool:
    """Else it comes to its end."""

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
def test_a_sleeper_undoes_nothing_that_came_later(shop: Shop) -> None:
    """A process is stopped at any step, taken for dead, and wakes up when another version is champion."""
    moment = 0
    while True:
        if moment % MOMENTS == 0:
            shop = shop.another(moment)
        sleeper = shop.ready(1 + moment % 4, moment=moment, fails=signal.SIGSTOP)
        sleeper.talk.send("go")
        asleep = falls_asleep(sleeper)
        shop.audit.move(partial(promote, 5 + moment % 4), lost=print)
        if not asleep:
            break
        psutil.Process(sleeper.process.pid).send_signal(signal.SIGCONT)
        assert sleeper.wait() is not None
        shop.audit.settle()
        assert [move.state for move in shop.assert_in_order()].count("abandoned") == 0
        moment += 1
    assert moment > 15


def test_an_alias_moved_by_other_means_is_recorded_and_kept(shop: Shop) -> None:
    shop.audit.move(lambda _: Wish("promotion", 1, "the first"), lost=pytest.fail)
    shop.versions.set_alias("champion", 5)
    shop.audit.settle()
    moves = shop.assert_in_order()
    assert (moves[-1].kind, moves[-1].from_version, moves[-1].to_version) == ("outside", 1, 5)
    shop.versions.remove_alias("champion")
    shop.audit.settle()
    assert shop.assert_in_order()[-1].to_version == 0


def history(*steps: tuple[str, int]) -> list[Move]:
    champion, moves = 0, []
    for number, (kind, version) in enumerate(steps, start=1):
        moves.append(Move(number, kind, champion, version, "ann", "noon", "", "", "h", "1@2", state="done"))  # type: ignore[arg-type]
        champion = version
    return moves


def killed_after_its_claim(shop: Shop, move: Move) -> None:
    """What a process leaves that dies between its claim and its record."""
    gone = replace(move, pid="1@0.0", system=move.system or _system())
    assert shop.audit._claim(gone)


def wanted(shop: Shop, kind: str, start: int, to: int) -> Move:
    number = len(shop.audit.moves()) + 1
    (move,) = history((kind, to))
    return replace(move, number=number, from_version=start, host=socket.gethostname(), state="pending")


def test_a_champion_moved_by_other_means_meanwhile_is_decided_about_again(shop: Shop) -> None:
    asked: list[int] = []

    def decide(champion: int) -> Wish:
        asked.append(champion)
        if len(asked) == 1:
            shop.versions.set_alias("champion", 5)
        return Wish("promotion", 2, "")

    told: list[str] = []
    done = shop.audit.move(decide, told.append)
    assert (asked, done.from_version, done.state) == ([0, 5], 5, "done")
    assert "was abandoned, since the champion was 5 by then" in told[0]
    assert [move.state for move in shop.audit.moves()] == ["abandoned", "done", "done"]


def test_an_unfinished_record_of_an_outside_move_writes_nothing(shop: Shop) -> None:
    shop.audit.move(partial(promote, 1), lost=pytest.fail)
    killed_after_its_claim(shop, wanted(shop, "outside", 1, 5))
    shop.audit.settle()
    assert shop.champion == 1
    assert shop.assert_in_order()[-1].state == "abandoned"


def test_a_process_on_a_host_of_the_same_name_is_waited_for(shop: Shop) -> None:
    """Such as in another container: that its number is free here says nothing."""
    elsewhere = replace(wanted(shop, "promotion", 0, 3), system="another kernel pid:[1]")
    killed_after_its_claim(shop, elsewhere)
    shop.audit.settle()
    assert shop.time.seconds > OTHER_HOST_SECONDS
    assert shop.champion == 3


def test_a_process_that_is_gone_from_here_is_not_waited_for(shop: Shop) -> None:
    killed_after_its_claim(shop, wanted(shop, "promotion", 0, 3))
    shop.audit.settle()
    assert (shop.time.seconds, shop.champion) == (0, 3)


def test_mlflow_client_sends_the_alias_once(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other requests it repeats when a server says that it is busy."""
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
            audit._write(3)
        with pytest.raises(MlflowException):
            versions.set_tags(3, {"a": "b"})
        server.shutdown()
        thread.join()
    assert asked == ["registered-models/set-tag", "registered-models/alias", *["model-versions/set-tag"] * 3]


def test_a_version_set_back_by_other_means_stays_and_is_told(shop: Shop) -> None:
    for version in (1, 2):
        shop.audit.move(partial(promote, version), lost=pytest.fail)
    shop.versions.set_alias("champion", 1)
    shop.audit.settle()
    assert shop.assert_in_order()[-1].to_version == 1
    (told,) = shop.told
    assert "went from version 2 to version 1 by other means than pspnet, and stays there" in told
    assert "`pspnet rollback --to 2` undoes it" in told


def test_a_move_to_a_version_that_was_deleted_is_abandoned(shop: Shop) -> None:
    shop.audit.move(partial(promote, 1), lost=pytest.fail)
    killed_after_its_claim(shop, wanted(shop, "promotion", 1, 3))
    shop.client.delete_model_version(shop.name, "3")
    shop.audit.settle()
    assert shop.assert_in_order()[-1].note == "version 3 was gone by then"


def test_a_claim_or_the_audit_deleted_by_a_person_stops_nothing(shop: Shop) -> None:
    shop.audit.move(partial(promote, 1), lost=pytest.fail)
    killed_after_its_claim(shop, wanted(shop, "promotion", 1, 3))
    (claim, _), *_ = shop.audit._claims()
    shop.client.delete_experiment(claim.experiment_id)
    home = shop.client.get_experiment_by_name(f"{shop.name}.promotions")
    assert home
    shop.client.delete_experiment(home.experiment_id)
    done = shop.audit.move(partial(promote, 2), lost=pytest.fail)
    assert (done.from_version, done.state, shop.champion) == (1, "done", 2)


def test_rollbacks_in_a_row_go_back_further() -> None:
    moves = history(("promotion", 1), ("promotion", 2), ("promotion", 3))
    assert previous_champion(moves, [1, 2, 3]) == 2
    assert previous_champion(moves, [1, 3]) == 1  # 2 was deleted
    moves = history(("promotion", 1), ("promotion", 2), ("promotion", 3), ("rollback", 2))
    assert previous_champion(moves, [1, 2, 3]) == 1
    moves = history(("promotion", 1), ("promotion", 2), ("rollback", 1), ("promotion", 3))
    assert previous_champion(moves, [1, 2, 3]) == 1
    with pytest.raises(UserError, match="no earlier champion"):
        previous_champion(history(("promotion", 1)), [1])


def test_what_was_rolled_back_is_withdrawn_until_it_is_champion_again() -> None:
    moves = history(("promotion", 1), ("promotion", 2), ("rollback", 1))
    assert withdrawal(moves, 2) == "version 2 was rolled back by ann at noon"
    assert withdrawal(moves, 1) is None
    assert withdrawal([*moves, *history(("promotion", 2))], 2) is None
