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
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil

from pspnet.errors import Busy, Problem, UserError
from pspnet.process import is_alive, user
from pspnet.registry.versions import CHALLENGER, CHAMPION, Versions
from pspnet.tracking.connection import experiment

if TYPE_CHECKING:
    from mlflow.entities import Experiment
    from mlflow.entities import Run as MlflowRun
    from mlflow.tracking import MlflowClient

PENDING, DONE, ABANDONED = "pending", "done", "abandoned"
OUTSIDE_SECONDS = 1.0
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
        found = {move.number: move for _, move in self._claims()} | self._recorded()
        return [found[number] for number in sorted(found)]

    def move(self, decide: Callable[[int], Wish], lost: Callable[[str], None]) -> Move:
        """Move the alias as `decide` says; it is asked again, and `lost` told why, when somebody was quicker."""
        for _ in range(ATTEMPTS):
            self.settle()
            standing = self._standing()
            if standing is None:
                continue
            wish = decide(standing.champion)
            wanted = _new_move(standing.number, standing.champion, wish)
            claim = self._claim(wanted)
            if claim is None:
                lost(self._winner(wanted.number))
                continue
            done = self._finish(*claim)
            if done.state == DONE and done.process == wanted.process and done.to_version == wanted.to_version:
                return done
            lost(f"{done.kind} {done.number} was abandoned, since {done.note or 'another process took its number'}")
        raise Busy(f"The champion of {self._model} was moved by others {ATTEMPTS} times in a row. Try again later.")

    def settle(self) -> None:
        """Finish what processes that are gone have begun; wait for those that are at it. Then alias and audit agree."""
        seen: dict[int, float] = {}
        while unfinished := self._unfinished():
            claim, move = unfinished
            since = seen.setdefault(move.number, time.monotonic())
            if _is_gone(move) or time.monotonic() - since > OTHER_HOST_SECONDS:
                self._finish(claim, replace(move, note=f"finished by {_process_name()}"))
            else:
                time.sleep(0.1)
        self._record_what_moved_outside()

    def _unfinished(self) -> "tuple[Experiment | None, Move] | None":
        """The oldest claim; else a record that was left open, should somebody have deleted its claim."""
        records = self._recorded()
        if claims := self._claims():
            return claims[0]
        newest = records[max(records)] if records else None
        return (None, newest) if newest and newest.state == PENDING else None

    def _standing(self) -> _Standing | None:
        """The number to claim and the champion it would replace; None while a move is under way.

        Read in this order: a move that is not among the records is either seen as a claim, or has the number we want.
        """
        records = self._recorded()
        newest = max(records, default=0)
        if self._claims() or (newest and records[newest].state == PENDING):
            return None
        done = [number for number, move in records.items() if move.state == DONE]
        return _Standing(
            number=newest + 1,
            recorded=records[max(done)].to_version if done else 0,
            champion=self._versions.alias(CHAMPION) or 0,
        )

    def _record_what_moved_outside(self) -> None:
        """Whoever moved the alias by other means may have had a reason: it is kept, and recorded."""
        before = self._standing()
        if before is None or before.champion == before.recorded:
            return
        time.sleep(OUTSIDE_SECONDS)  # a process that slept through its move may be about to mend it
        standing = self._standing()
        if standing != before:
            return
        wish = Wish("outside", standing.champion, "the alias was moved by other means than pspnet")
        if claim := self._claim(_new_move(standing.number, standing.recorded, wish)):
            self._finish(*claim)

    def _claim(self, move: Move) -> "tuple[Experiment, Move] | None":
        from mlflow.exceptions import MlflowException

        tags = {key: str(value) for key, value in asdict(move).items()}
        name = f"{self._claim_prefix}{move.number}"
        try:
            return self._client.get_experiment(self._client.create_experiment(name, tags=tags)), move
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        taken = self._client.get_experiment_by_name(name)
        if taken is None:
            return None
        if _move(taken.tags) == move:  # ours, although the answer to our request was lost
            return taken, move
        if taken.lifecycle_stage == "deleted" and not self._runs(move.number):
            return self._claim(replace(move, number=move.number + 1))  # a person has deleted an unfinished one
        return None

    def _finish(self, claim: "Experiment | None", move: Move) -> Move:
        """Steps 4 and 5; done twice, or by two at once, they come to the same."""
        from mlflow.exceptions import MlflowException

        self._record(move)
        closed, wrote = self._closed(move), False
        if closed is None:
            closed, wrote = self._carry_out(move)
        try:
            if claim:
                self._client.delete_experiment(claim.experiment_id)
        except MlflowException:  # another process has finished this move at the same time
            if claim and self._client.get_experiment(claim.experiment_id).lifecycle_stage != "deleted":
                raise
        if wrote:
            self._mend_overtaken(closed)
        return closed

    def _carry_out(self, move: Move) -> tuple[Move, bool]:
        """The closed record, and whether the alias was written."""
        champion, target = self._versions.alias(CHAMPION) or 0, move.to_version
        wrote = False
        if champion != target:
            if champion != move.from_version or move.kind == "outside":
                return self._close(replace(move, state=ABANDONED, note=f"the champion was {champion} by then")), False
            if not self._versions.exists(target):
                return self._close(replace(move, state=ABANDONED, note=f"version {target} was gone by then")), False
            self._versions.set_alias(CHAMPION, target)
            wrote = True
            if (champion := self._versions.alias(CHAMPION) or 0) != target:
                raise Busy(f"The alias {CHAMPION} was set to version {target} and reads {champion}. Try again.")
        if target and self._versions.alias(CHALLENGER) == target:
            self._versions.remove_alias(CHALLENGER)
        if target:
            self._versions.set_tags(target, {"promotion": str(move.number)})
        return self._close(replace(move, state=DONE)), wrote

    def _closed(self, move: Move) -> Move | None:
        """A process that slept through its own move finds that another has finished it."""
        found = self._recorded(move.number).get(move.number)
        return found if found and found.state != PENDING else None

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
        """A process that slept before it wrote the alias may have written it after a later move: that one counts."""
        later = [
            other
            for other in self.moves()
            if other.number > move.number and other.state != ABANDONED and other.kind != "outside"
        ]
        if later and self._versions.alias(CHAMPION) == move.to_version != later[-1].to_version:
            self._versions.set_alias(CHAMPION, later[-1].to_version)

    def _record(self, move: Move) -> None:
        """See to it that this move has its line in the audit."""
        if not self._runs(move.number):
            home = experiment(self._client, self._state, self._records)
            tags = {key: str(value) for key, value in asdict(replace(move, state=PENDING)).items()}
            name = f"{move.number}: {move.kind} of version {move.to_version}"
            self._client.create_run(home, tags=tags, run_name=name)

    def _recorded(self, number: int | None = None) -> dict[int, Move]:
        """By number; of two records of one number a closed one counts, else the older."""
        found: dict[int, Move] = {}
        for move in (_move(run.data.tags) for run in self._runs(number)):
            if move.number not in found or (found[move.number].state == PENDING and move.state != PENDING):
                found[move.number] = move
        return found

    def _runs(self, number: int | None = None) -> "list[MlflowRun]":
        """The records, oldest first; all, or those of one number."""
        home = self._client.get_experiment_by_name(self._records)
        if home is None:
            return []
        if home.lifecycle_stage == "deleted":  # by a person; its runs come back with it
            self._client.restore_experiment(home.experiment_id)
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
        claims = [claim for claim in found if claim.name == f"{prefix}{claim.tags.get('number')}"]
        return sorted(((claim, _move(claim.tags)) for claim in claims), key=lambda pair: pair[1].number)

    def _winner(self, number: int) -> str:
        claim = self._client.get_experiment_by_name(f"{self._claim_prefix}{number}")
        if claim is None:
            return f"move {number} was claimed by another process"
        move = _move(claim.tags)
        return f"{move.kind} {number} (to version {move.to_version}) was won by {move.who} on {move.host}"


def previous_champion(moves: list[Move], existing: Collection[int]) -> int:
    """What was champion before the present one, as a person means it: two rollbacks in a row go back two versions."""
    stack: list[int] = []
    for move in moves:
        if move.state != DONE:
            continue
        if move.kind != "promotion" and move.to_version in stack:
            del stack[stack.index(move.to_version) + 1 :]
        else:
            stack.append(move.to_version)
    earlier = [version for version in stack[:-1] if version in existing and version != stack[-1]]
    if not earlier:
        raise UserError(Problem("rollback", "no earlier champion is on record", fix="Name a version with --to."))
    return earlier[-1]


def withdrawal(moves: list[Move], version: int) -> str | None:
    """Why this version is not to be promoted by itself again: it was champion and a person took it back."""
    told = None
    for move in moves:
        if move.state != DONE:
            continue
        if move.kind == "rollback" and move.from_version == version:
            why = f": {move.why}" if move.why else ""
            told = f"version {version} was rolled back by {move.who} at {move.when}{why}"
        if move.to_version == version:
            told = None
    return told


def _move(tags: "dict[str, str]") -> Move:
    values = {name: tags.get(name, "") for name in Move.__dataclass_fields__}  # an empty one may be dropped on its way
    numbers = {name: int(values.pop(name) or 0) for name in ("number", "from_version", "to_version")}
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
    number, _, created = move.process.partition("@")
    return not is_alive(int(number), float(created))
