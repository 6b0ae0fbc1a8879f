"""Every move of the champion alias: numbered, recorded before it happens, finished by the next process if one dies.

MLflow writes an alias without comparing it to what was there before, so two hosts could overwrite each other. But the
names of experiments are unique in its database, those of deleted experiments too. A move therefore

1. settles what an earlier process left unfinished, and reads the number of the last move,
2. reads the champion and lets the caller decide on it,
3. claims the next number: creates the experiment `MODEL.promotion.N`, whose tags say all there is to say.
   If N is taken, another process has moved the alias since step 1: back to 1, to decide again,
4. writes the record, state `pending`, a run in the experiment `MODEL.promotions`,
5. writes the alias and reads it back,
6. decides how the move ended: creates the experiment `MODEL.promotion.N.closed` with the state `done`, or `abandoned`
   if the champion was neither of the two. Of several processes the first one decides,
7. copies that to the record and deletes the claim, whose name stays taken,
8. if it was not the first, reads the alias again: see below.

A claim that still exists is an unfinished move, and steps 4 to 8 can be done again by anybody.

A write of the alias may come late: its process was suspended before it, or the network delayed it. So it is sent once,
without the retries of MLflow's client, and before that the model gets the tag `pspnet.writing.PROCESS.COUNT`, the
version that is written. The tag goes when the write has been answered, and either its process was the first to say how
the move ended, so that it was in time, or the alias agrees with the audit: with the last move that is done, while none
is unfinished. Until then its process puts the alias back to what the audit says. If it dies, the tag stays. Whoever
finds an alias that does not agree looks for such a tag: if there is one, the write was late, and the alias is put back.
Else somebody moved it by other means, which is recorded and kept.
"""

import os
import socket
import time
import uuid
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import psutil

from pspnet.errors import Busy, Problem, UserError
from pspnet.process import is_alive, user
from pspnet.registry.seal import KEY, is_signature, signature
from pspnet.registry.versions import CHALLENGER, CHAMPION, CHANGED, SHORT, Version, Versions
from pspnet.tracking.connection import experiment, once

if TYPE_CHECKING:
    from mlflow.entities import Experiment
    from mlflow.entities import Run as MlflowRun
    from mlflow.tracking import MlflowClient

PENDING, DONE, ABANDONED = "pending", "done", "abandoned"
OUTSIDE_SECONDS = 1.0
OTHER_HOST_SECONDS = 30.0  # a claim from elsewhere that has not moved for so long is left behind
ATTEMPTS = 50
LONGEST_WHY = 2000  # characters, well within what a tag may hold
OUTSIDE = "the alias was moved by other means than pspnet"
REMOVE_CLAIM = "delete this experiment in MLflow"
WRITING = "pspnet.writing."  # tag of the model: a write of the alias that may still come

Kind = Literal["promotion", "rollback", "outside", "seal"]


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
    process: str  # a random id
    pid: str = ""  # with the second in which it began
    system: str = ""  # in which this pid is unique
    content: str = ""  # digest of the files of `to_version`
    signature: str = ""  # of all this, with PSPNET_AUDIT_KEY
    state: str = PENDING
    finished: str = ""
    note: str = ""
    closing: str = ""  # signature of the state in which it ended

    def signed(self, model: str) -> Self:
        return replace(self, signature=signature(self._facts(model)))

    def closed(self) -> Self:
        return replace(self, closing=signature(self._outcome()))

    def is_signed(self, model: str) -> bool:
        """Without a key, whatever it bears."""
        ended = self.state == PENDING or is_signature(self.closing, self._outcome())
        return ended and is_signature(self.signature, self._facts(model))

    def _facts(self, model: str) -> dict[str, str]:
        changing = {"signature", "closing", "state", "finished", "note"}
        return {"model": model} | {key: str(value) for key, value in asdict(self).items() if key not in changing}

    def _outcome(self) -> dict[str, str]:
        return {"move": self.signature, "state": self.state}


@dataclass(frozen=True)
class Wish:
    """Where the alias should go, decided for the champion that was read."""

    kind: Kind
    to_version: int
    why: str
    decision: str = ""
    content: str = ""


@dataclass(frozen=True)
class Clock:
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], datetime] = lambda: datetime.now(UTC)


@dataclass(frozen=True)
class _Standing:
    number: int  # of the next move
    recorded: int  # champion by the audit
    champion: int  # by the alias


class Audit:
    def __init__(
        self, client: "MlflowClient", state: Path, versions: Versions, tell: Callable[[str], None],
        clock: Clock = Clock(), process: str = "",
    ) -> None:  # fmt: skip
        """`tell` is called with what a person should know: an alias put back, or moved by other means."""
        self._client, self._state, self._versions, self._tell, self._clock = client, state, versions, tell, clock
        self._model = versions.model
        self._process = process or uuid.uuid4().hex
        self._writes = 0
        self._answered: dict[str, int] = {}  # writes of ours that may have been late: tag, version

    def moves(self) -> list[Move]:
        """Oldest first; unfinished ones too."""
        found = {move.number: move for _, move in self._claims()} | self._recorded()
        return [found[number] for number in sorted(found)]

    def check(self, version: Version) -> None:
        """Refuse a version whose files are not those that were promoted."""
        moves = [move for move in self.moves() if move.state == DONE and move.to_version == version.number]
        promoted = [move for move in moves if move.content]  # a move by other means knows no files
        if promoted and promoted[-1].content != version.content:
            problem = f"has the digest {version.content[:SHORT]}"
            expected = f"{promoted[-1].content[:SHORT]}, as in move {promoted[-1].number} of the audit"
            raise UserError(Problem(f"{self._model} version {version.number}", problem, expected, CHANGED))

    def move(self, decide: Callable[[int], Wish], lost: Callable[[str], None]) -> Move:
        """Move the alias as `decide` says; it is asked again, and `lost` told why, when somebody was quicker."""
        for _ in range(ATTEMPTS):
            self.settle()
            standing = self._standing()
            if standing is None or standing.champion != standing.recorded:
                continue
            wish = decide(standing.champion)
            wanted = self._new_move(standing.number, standing.champion, wish)
            claim = self._claim(wanted)
            if claim is None:
                lost(self._winner(wanted.number))
                continue
            done = self._finish(*claim)
            if done.state == DONE and done.process == wanted.process and done.to_version == wanted.to_version:
                return done
            lost(f"{done.kind} {done.number} was abandoned, since {done.note or 'another process took its number'}")
        raise self._unsettled()

    def settle(self) -> None:
        """Finish what processes that are gone have begun; wait for those that are at it. Then alias and audit agree."""
        for _ in range(ATTEMPTS):
            self._finish_all()
            if self._agree():
                return
        raise self._unsettled()

    def _unsettled(self) -> Busy:
        return Busy(f"The champion of {self._model} was moved by others {ATTEMPTS} times in a row. Try again later.")

    def _finish_all(self) -> None:
        seen: dict[int, float] = {}
        while unfinished := self._unfinished():
            claim, move = unfinished
            now = self._clock.monotonic()
            if move.process == self._process:
                self._finish(claim, move)
            elif _is_gone(move) or now - seen.setdefault(move.number, now) > OTHER_HOST_SECONDS:
                self._finish(claim, replace(move, note=f"finished by {user()} on {socket.gethostname()}"))
            else:
                self._clock.sleep(0.1)

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

    def _agree(self) -> bool:
        """Whether the alias is what the audit says. If not, it is put back, or recorded as moved by other means."""
        before = self._standing()
        if before is None or before.champion == before.recorded:
            return before is not None
        late = self._is_late(before.champion, before.recorded)
        if not late:
            self._clock.sleep(OUTSIDE_SECONDS)  # a process of an earlier pspnet may be about to mend it
        if self._standing() != before:  # another process has moved the alias while this one was reading
            return False
        if late:
            self._put_back(before.champion, before.recorded)
            return False
        wish = Wish("outside", before.champion, OUTSIDE)
        if claim := self._claim(self._new_move(before.number, before.recorded, wish)):
            self._finish(*claim)
            self._tell_of_outside(before)
        return False

    def _tell_of_outside(self, found: _Standing) -> None:
        """Whoever set it back with MLflow had a reason; but a network that repeats requests looks the same."""
        earlier = [move.number for move in self.moves() if move.to_version == found.champion and move.kind != "outside"]
        if earlier and found.champion:
            self._tell(
                f"{self._model}: the alias {CHAMPION} went from version {found.recorded} to version {found.champion} "
                f"by other means than pspnet, and stays there. Move {earlier[-1]} had set it before: if nobody "
                f"did so now, a late write did, and `pspnet rollback --to {found.recorded}` undoes it."
            )

    def _is_late(self, champion: int, recorded: int) -> bool:
        """Whether a write of ours may have left the alias so. To be asked after the alias was read: tags come first."""
        if not self._exists(recorded):
            return False
        tags = self._versions.model_tags()
        return str(champion) in [version for tag, version in tags.items() if tag.startswith(WRITING)]

    def _put_back(self, champion: int, recorded: int) -> None:
        self._write(recorded)
        now = f"put back to version {recorded}" if recorded else "removed"
        undo = f" If somebody set it on purpose: `pspnet rollback --to {champion}`." if champion else ""
        found = f"was set to version {champion}" if champion else "was removed"
        self._tell(f"{self._model}: the alias {CHAMPION} {found} by a late write; it is {now}.{undo}")
        self._mend()

    def _write(self, version: int) -> None:
        """Set the alias; 0 removes it."""
        self._writes += 1
        tag = f"{WRITING}{self._process}.{self._writes}"
        self._versions.set_model_tag(tag, str(version))
        with once():
            if version:
                self._versions.set_alias(CHAMPION, version)
            else:
                self._versions.remove_alias(CHAMPION)
        self._answered[tag] = version

    def _mend(self) -> None:
        """Put the alias back as long as it is what we wrote and not what the audit says."""
        for _ in range(ATTEMPTS):
            if (self._versions.alias(CHAMPION) or 0) not in self._answered.values():
                return self._forget_writes()
            standing = self._standing()
            if standing is None:  # a move that may have been overwritten
                self._finish_all()
            elif standing.champion == standing.recorded or not self._exists(standing.recorded):
                return self._forget_writes()
            elif standing.champion in self._answered.values():
                self._write(standing.recorded)
        raise self._unsettled()

    def _forget_writes(self) -> None:
        for tag in self._answered:
            self._versions.remove_model_tag(tag)
        self._answered.clear()

    def _exists(self, version: int) -> bool:
        return not version or self._versions.exists(version)

    def _champion_on_record(self) -> int:
        return max(((n, m.to_version) for n, m in self._recorded().items() if m.state == DONE), default=(0, 0))[1]

    def _claim(self, move: Move) -> "tuple[Experiment, Move] | None":
        from mlflow.exceptions import MlflowException

        name = f"{self._claim_prefix}{move.number}"
        try:
            return self._client.get_experiment(self._client.create_experiment(name, tags=_tags(move))), move
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        taken = self._client.get_experiment_by_name(name)
        if taken is None:
            return None
        if _move(taken.tags) == move:  # ours, although the answer to our request was lost
            return taken, move
        if taken.lifecycle_stage == "deleted" and not self._runs(move.number):
            after = replace(move, number=move.number + 1)
            return self._claim(after.signed(self._model))  # a person has deleted an unfinished one
        return None

    def _finish(self, claim: "Experiment | None", move: Move) -> Move:
        """Steps 4 to 8; done twice, or by two at once, they come to the same."""
        self._record(move)
        closed = self._closed(move) or self._carry_out(move)
        if claim:
            self._remove(claim.experiment_id)
        if self._answered:
            self._mend()
        return closed

    def _carry_out(self, move: Move) -> Move:
        """Write the alias, unless it was moved by other means meanwhile, and close the record."""
        target = move.to_version
        for _ in range(ATTEMPTS):
            champion = self._versions.alias(CHAMPION) or 0
            if champion == target:
                return self._close(replace(move, state=DONE))
            if champion != move.from_version or move.kind == "outside":
                recorded = self._champion_on_record()
                if champion == recorded or not self._is_late(champion, recorded):
                    abandoned = replace(move, state=ABANDONED, note=f"the champion was {champion} by then")
                    return self._close(abandoned, outside=None if champion == recorded else champion)
            if not self._exists(target):
                return self._close(replace(move, state=ABANDONED, note=f"version {target} was gone by then"))
            self._write(target)
        raise self._unsettled()

    def _remove(self, experiment_id: str) -> None:
        """Its name stays taken."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.delete_experiment(experiment_id)
        except MlflowException:  # another process has finished this move at the same time
            if self._client.get_experiment(experiment_id).lifecycle_stage != "deleted":
                raise

    def _closed(self, move: Move) -> Move | None:
        """A process that slept through its own move finds that another has finished it."""
        found = self._recorded(move.number).get(move.number)
        return found if found and found.state != PENDING else None

    def _close(self, move: Move, outside: int | None = None) -> Move:
        """As the first process says that comes here. `outside`: where the alias was moved by other means meanwhile."""
        move, first = self._decided(replace(move, finished=self._now()).closed())
        if first:  # whatever we wrote came before
            self._forget_writes()
        if move.state == DONE and move.to_version:
            with once():
                if self._versions.alias(CHALLENGER) == move.to_version:
                    self._versions.remove_alias(CHALLENGER)
            self._versions.set_tags(move.to_version, {"promotion": str(move.number)})
        if move.state == ABANDONED and outside is not None:  # before a late write of this move can hide it
            self._claim(self._new_move(move.number + 1, move.from_version, Wish("outside", outside, OUTSIDE)))
        self._file(move)
        return move

    def _decided(self, move: Move) -> tuple[Move, bool]:
        """How the move ended, and whether we were the first to say so."""
        from mlflow.exceptions import MlflowException

        name = f"{self._claim_prefix}{move.number}.closed"
        try:
            self._remove(self._client.create_experiment(name, tags=_tags(move)))
            return move, True
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = self._client.get_experiment_by_name(name)
        assert found is not None
        if found.lifecycle_stage != "deleted":
            self._remove(found.experiment_id)
        closed = _move(found.tags)
        if not closed.is_signed(self._model):
            raise _forged(name, REMOVE_CLAIM)
        return closed, False

    def _file(self, move: Move) -> None:
        """Copy a closed move to its record, and delete those that others have made of it at the same time."""
        from mlflow.exceptions import MlflowException

        oldest, *others = self._runs(move.number)
        try:
            for key in ("note", "finished", "closing", "state"):  # the state last: with it the record is closed
                self._client.set_tag(oldest.info.run_id, key, getattr(move, key))
            self._client.set_terminated(oldest.info.run_id, "FINISHED" if move.state == DONE else "KILLED")
        except MlflowException:
            if self._client.get_run(oldest.info.run_id).info.lifecycle_stage != "deleted":
                raise
            self._file(move)  # there was an older one, and whoever saw it has deleted this one
            return
        for run in others:
            self._client.delete_run(run.info.run_id)

    def _record(self, move: Move) -> None:
        """See to it that this move has its line in the audit."""
        if not self._runs(move.number):
            home = experiment(self._client, self._state, self._records)
            tags = _tags(replace(move, state=PENDING))
            name = f"{move.number}: {move.kind} of version {move.to_version}"
            self._client.create_run(home, tags=tags, run_name=name)

    def _recorded(self, number: int | None = None) -> dict[int, Move]:
        """By number; of two records of one number a closed one counts, else the older."""
        found: dict[int, Move] = {}
        for move in (_move(run.data.tags) for run in self._runs(number)):
            if move.number not in found or (found[move.number].state == PENDING and move.state != PENDING):
                found[move.number] = move
        if number is None:
            self._refuse_forged(found.values())
        return found

    def _refuse_forged(self, records: Collection[Move]) -> None:
        """With a key; what was recorded before there was one is older than all that is signed."""
        signed = {move.number for move in records if move.is_signed(self._model)}
        for move in records:
            if signed and move.number > min(signed) and move.number not in signed:
                raise _forged(f"{self._records}, move {move.number}", "delete its run in MLflow")

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

    def _new_move(self, number: int, from_version: int, wish: Wish) -> Move:
        move = Move(
            number=number,
            kind=wish.kind,
            from_version=from_version,
            to_version=wish.to_version,
            who=user(),
            when=self._now(),
            why=wish.why[:LONGEST_WHY],
            decision=wish.decision,
            host=socket.gethostname(),
            process=self._process,
            pid=_pid(),
            system=_system(),
            content=wish.content,
        )
        return move.signed(self._model)

    def _now(self) -> str:
        return self._clock.now().isoformat(timespec="seconds")

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
        moves = [_move(claim.tags) for claim in claims]
        for move in moves:
            if not move.is_signed(self._model):
                raise _forged(f"{prefix}{move.number}", REMOVE_CLAIM)
        return sorted(zip(claims, moves, strict=True), key=lambda pair: pair[1].number)

    def _winner(self, number: int) -> str:
        claim = self._client.get_experiment_by_name(f"{self._claim_prefix}{number}")
        if claim is None:
            return f"move {number} was claimed by another process"
        move = _move(claim.tags)
        return f"{move.kind} {number} (to version {move.to_version}) was won by {move.who} on {move.host}"


def _forged(where: str, remedy: str) -> UserError:
    fix = f"Every process that promotes needs the key. If somebody else has written it, {remedy}."
    return UserError(Problem(where, f"is not signed with {KEY}", fix=fix))


def previous_champion(moves: list[Move], existing: Collection[int]) -> int:
    """What was champion before the present one, as a person means it: two rollbacks in a row go back two versions."""
    stack: list[int] = []
    for move in moves:
        if move.state != DONE or move.kind == "seal":
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


def _tags(move: Move) -> dict[str, str]:
    return {key: str(value) for key, value in asdict(move).items()}


def _pid() -> str:
    """Unlike its number alone, never that of another process of this system, not after a reboot either."""
    return f"{os.getpid()}@{psutil.Process().create_time():.2f}"


def _system() -> str:
    """Processes with the same one see each other: it is one start of one kernel, and one container (or none) in it.

    Names of hosts do not tell: containers may have the same.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def _is_gone(move: Move) -> bool:
    """Of a process on this system we know; of others only that nothing happens any more."""
    if not move.pid or move.system != _system():
        return False
    number, _, created = move.pid.partition("@")
    return not is_alive(int(number), float(created))
