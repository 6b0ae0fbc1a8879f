"""Every move of the champion alias: numbered, recorded before it happens, finished by the next process if one dies.

MLflow writes an alias without comparing it to what was there before, so two hosts could overwrite each other. But the
names of experiments are unique in its database, those of deleted experiments too. A move therefore

1. settles what an earlier process left unfinished, and reads the number of the last move,
2. reads the champion and lets the caller decide on it,
3. claims the next number: creates the experiment `MODEL.promotion.N`, whose tags say all there is to say.
   If N is taken, another process has moved the alias since step 1: back to 1, to decide again,
4. writes the record, state `pending`, a run in the experiment `MODEL.promotions`,
5. writes the alias, reads it back, closes the record, deletes the claim, whose name stays taken.

A claim that still exists is an unfinished move, and steps 4 and 5 can be done again by anybody.
"""

import os
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil

from pspnet.errors import Busy, Problem, UserError
from pspnet.process import user
from pspnet.registry.versions import CHALLENGER, CHAMPION, Versions
from pspnet.tracking.connection import experiment

if TYPE_CHECKING:
    from mlflow.entities import Experiment
    from mlflow.entities import Run as MlflowRun
    from mlflow.tracking import MlflowClient

PENDING, DONE, ABANDONED = "pending", "done", "abandoned"
OTHER_HOST_SECONDS = 30.0  # a claim from elsewhere that has not moved for so long is left behind
ATTEMPTS = 50
LONGEST_WHY = 2000  # characters, well within what a tag may hold

Kind = Literal["promotion", "rollback", "outside"]


@dataclass(frozen=True)
class Move:
    """One line of the audit; 0 stands for no version."""

    number: int
    kind: Kind
    from_version: int
    to_version: int
    who: str
    when: str
    why: str
    decision: str  # digest of the gate's decision
    host: str
    process: str
    state: str = PENDING
    finished: str = ""
    note: str = ""


@dataclass(frozen=True)
class Wish:
    """Where the alias should go, decided for the champion that was read."""

    kind: Kind
    to_version: int
    why: str
    decision: str = ""


@dataclass(frozen=True)
class _Standing:
    number: int  # of the next move
    recorded: int  # champion by the audit
    champion: int  # by the alias


class Audit:
    def __init__(self, client: "MlflowClient", state: Path, versions: Versions) -> None:
        self._client, self._state, self._versions = client, state, versions
        self._model = versions.model

    def moves(self) -> list[Move]:
        """Oldest first; unfinished ones too."""
        found = {move.number: move for _, move in self._claims()}
        for run in self._runs():
            move = _move(run.data.tags)
            if move.number not in found or found[move.number].state == PENDING:  # of two records one may be closed
                found[move.number] = move
        return [found[number] for number in sorted(found)]

    def move(self, decide: Callable[[int], Wish], lost: Callable[[str], None]) -> Move:
        """Move the alias as `decide` says; it is asked again, and `lost` told why, when somebody was quicker."""
        for _ in range(ATTEMPTS):
            self.settle()
            standing = self._standing()
            if standing is None:
                continue
            number, champion = standing.number, standing.champion
            wish = decide(champion)
            claim = self._claim(_new_move(number, champion, wish))
            if claim is None:
                lost(self._winner(number))
                continue
            return self._finish(*claim)
        raise Busy(f"The champion of {self._model} was moved by others {ATTEMPTS} times in a row. Try again later.")

    def settle(self) -> list[Move]:
        """Finish what processes that are gone have begun; wait for those that are at it. Then alias and audit agree."""
        finished = []
        seen: dict[str, float] = {}
        while claims := self._claims():
            claim, move = claims[0]
            since = seen.setdefault(claim.experiment_id, time.monotonic())
            if _is_gone(move) or time.monotonic() - since > OTHER_HOST_SECONDS:
                finished.append(self._finish(claim, replace(move, note=f"finished by {_process_name()}")))
            else:
                time.sleep(0.1)
        if outside := self._moved_outside():
            finished.append(outside)
        return finished

    def _standing(self) -> _Standing | None:
        """The number to claim and the champion it would replace; None while a move is under way.

        Read in this order: a move that is not among the records is either seen as a claim, or has the number we want.
        """
        moves = [_move(run.data.tags) for run in self._runs()]
        if self._claims():
            return None
        recorded = max((move for move in moves if move.state == DONE), key=lambda move: move.number, default=None)
        return _Standing(
            number=max((move.number for move in moves), default=0) + 1,
            recorded=recorded.to_version if recorded else 0,
            champion=self._versions.alias(CHAMPION) or 0,
        )

    def _moved_outside(self) -> Move | None:
        """Whoever moved the alias by other means may have had a reason: it is recorded, not undone."""
        standing = self._standing()
        if standing is None or standing.champion == standing.recorded:
            return None
        wish = Wish("outside", standing.champion, "the alias was moved by other means than pspnet")
        claim = self._claim(_new_move(standing.number, standing.recorded, wish))
        return self._finish(*claim) if claim else None

    def _claim(self, move: Move) -> "tuple[Experiment, Move] | None":
        from mlflow.exceptions import MlflowException

        tags = {key: str(value) for key, value in asdict(move).items()}
        try:
            created = self._client.create_experiment(f"{self._claim_prefix}{move.number}", tags=tags)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return None
        return self._client.get_experiment(created), move

    def _finish(self, claim: "Experiment", move: Move) -> Move:
        """Steps 4 and 5; done twice, or by two at once, they come to the same."""
        from mlflow.exceptions import MlflowException

        self._record(move)
        champion = self._versions.alias(CHAMPION) or 0
        if (closed := self._closed(move)) is None:
            if champion not in (move.from_version, move.to_version):
                closed = self._close(replace(move, state=ABANDONED, note=f"the champion was {champion} by then"))
            else:
                if champion != move.to_version:
                    self._versions.set_alias(CHAMPION, move.to_version)
                if (champion := self._versions.alias(CHAMPION) or 0) != move.to_version:
                    raise Busy(f"The alias {CHAMPION} was set to {move.to_version} and reads {champion}. Try again.")
                if self._versions.alias(CHALLENGER) == move.to_version:
                    self._versions.remove_alias(CHALLENGER)
                closed = self._close(replace(move, state=DONE))
        try:
            self._client.delete_experiment(claim.experiment_id)
        except MlflowException:  # another process has finished this move at the same time
            if self._client.get_experiment(claim.experiment_id).lifecycle_stage != "deleted":
                raise
        self._mend_overtaken(closed)
        return closed

    def _closed(self, move: Move) -> Move | None:
        """A process that slept through its own move finds that another has finished it."""
        found = [_move(run.data.tags) for run in self._runs(move.number)]
        return next((record for record in found if record.state != PENDING), None)

    def _close(self, move: Move) -> Move:
        from mlflow.exceptions import MlflowException

        if closed := self._closed(move):
            return closed
        move = replace(move, finished=_now())
        oldest, *others = self._runs(move.number)
        try:
            for key in ("note", "finished", "state"):  # the state last: with it the record is closed
                self._client.set_tag(oldest.info.run_id, key, getattr(move, key))
            self._client.set_terminated(oldest.info.run_id, "FINISHED" if move.state == DONE else "KILLED")
        except MlflowException:
            if self._client.get_run(oldest.info.run_id).info.lifecycle_stage != "deleted":
                raise
            return self._close(move)  # there was an older one, and whoever saw it has deleted this one
        for run in others:  # two processes are finishing this move at the same time
            self._client.delete_run(run.info.run_id)
        return move

    def _mend_overtaken(self, move: Move) -> None:
        """A process that slept after its claim may have written the alias after a later move: the later one counts."""
        later = [other for other in self.moves() if other.number > move.number and other.state == DONE]
        if later and self._versions.alias(CHAMPION) == move.to_version != later[-1].to_version:
            self._versions.set_alias(CHAMPION, later[-1].to_version)

    def _record(self, move: Move) -> None:
        """See to it that this move has its line in the audit."""
        if not self._runs(move.number):
            home = experiment(self._client, self._state, self._records)
            tags = {key: str(value) for key, value in asdict(replace(move, state=PENDING)).items()}
            name = f"{move.number}: {move.kind} of version {move.to_version}"
            self._client.create_run(home, tags=tags, run_name=name)

    def _runs(self, number: int | None = None) -> "list[MlflowRun]":
        """The records, oldest first; all, or those of one number."""
        home = self._client.get_experiment_by_name(self._records)
        if home is None:
            return []
        found: list[MlflowRun] = []
        token = None
        while True:
            page = self._client.search_runs(
                [home.experiment_id],
                filter_string=f"tags.number = '{number}'" if number else "",
                max_results=1000,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            found += [run for run in page if "number" in run.data.tags]  # as with claims
            token = page.token
            if not token:
                return found

    @property
    def _records(self) -> str:
        return f"{self._model}.promotions"

    @property
    def _claim_prefix(self) -> str:
        return f"{self._model}.promotion."

    def _claims(self) -> "list[tuple[Experiment, Move]]":
        """Of unfinished moves, oldest first."""
        prefix = self._claim_prefix
        found = self._client.search_experiments(filter_string=f"name LIKE '{prefix}%'", max_results=1000)
        # MLflow reads the tags in a second query: of an experiment that is deleted in between it finds none.
        claims = [claim for claim in found if claim.name.startswith(prefix) and "number" in claim.tags]
        return sorted(((claim, _move(claim.tags)) for claim in claims), key=lambda pair: pair[1].number)

    def _winner(self, number: int) -> str:
        claim = self._client.get_experiment_by_name(f"{self._claim_prefix}{number}")
        if claim is None:
            return f"move {number} was claimed by another process"
        move = _move(claim.tags)
        return f"{move.kind} {number} (to version {move.to_version}) was won by {move.who} on {move.host}"


def previous_champion(moves: list[Move]) -> int:
    """What was champion before the present one, as a person means it: two rollbacks in a row go back two versions."""
    stack: list[int] = []
    for move in moves:
        if move.state != DONE:
            continue
        if move.kind != "promotion" and move.to_version in stack:
            del stack[stack.index(move.to_version) + 1 :]
        else:
            stack.append(move.to_version)
    if len(stack) < 2 or stack[-2] == 0:
        raise UserError(Problem("rollback", "no earlier champion is on record", fix="Name a version with --to."))
    return stack[-2]


def withdrawal(moves: list[Move], version: int) -> str | None:
    """Why this version is not to be promoted by itself again: it was champion and a person took it back."""
    told = None
    for move in moves:
        if move.state != DONE:
            continue
        if move.kind == "rollback" and move.from_version == version:
            told = f"version {version} was rolled back by {move.who} at {move.when}" + (
                f": {move.why}" if move.why else ""
            )
        if move.to_version == version:
            told = None
    return told


def _move(tags: "dict[str, str]") -> Move:
    values = {name: tags.get(name, "") for name in Move.__dataclass_fields__}  # an empty one may be dropped on its way
    numbers = {name: int(values.pop(name)) for name in ("number", "from_version", "to_version")}
    return Move(**numbers, **values)  # type: ignore[arg-type]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _new_move(number: int, from_version: int, wish: Wish) -> Move:
    return Move(
        number=number,
        kind=wish.kind,
        from_version=from_version,
        to_version=wish.to_version,
        who=user(),
        when=_now(),
        why=wish.why[:LONGEST_WHY],
        decision=wish.decision,
        host=socket.gethostname(),
        process=_process_name(),
    )


def _process_name() -> str:
    """Unlike its number alone, never that of another process, not after a reboot either."""
    return f"{os.getpid()}@{psutil.Process().create_time():.2f}"


def _is_gone(move: Move) -> bool:
    """Of a process on this host we know; of others only that nothing happens any more."""
    if move.host != socket.gethostname():
        return False
    number, _, started = move.process.partition("@")
    try:
        process = psutil.Process(int(number))
        return f"{process.create_time():.2f}" != started or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
