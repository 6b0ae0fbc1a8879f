"""Moves the champion alias. Each move is first numbered and recorded; if its process dies, another process finishes it.

MLflow sets an alias without comparing it with its previous value, so a host could overwrite what another has just set.
But the names of experiments are unique in MLflow's database, even those of deleted experiments. So a move takes these
steps:

1. Settle what earlier processes left unfinished, and read the number of the last move and the champion (`attempts`).
2. The caller decides about that champion.
3. Claim the next number: create the experiment `MODEL.promotion.N`, whose tags contain the whole move (`apply`). If N
   is taken, another process has moved the alias since step 1, and the caller starts over from step 1.
4. Write the record, with the state `pending`: a run in the experiment `MODEL.promotions`.
5. Write the alias and read it back.
6. Settle how the move ended: create the experiment `MODEL.promotion.N.closed` with the state `done`, or `abandoned` if
   the champion was neither the old nor the new version. The first process to create it decides.
7. Copy the outcome to the record and delete the claim, whose name stays taken.
8. If this process was not the first in step 6, read the alias again, as explained below.

A claim that still exists is an unfinished move, and any process can repeat steps 4 to 8.

A write of the alias may arrive late: its process was suspended before sending it, or the network delayed it. So each
write is sent only once, without the retries of MLflow's client, after the model has been given the tag
`pspnet.writing.PROCESS.COUNT` with the version to be written. The tag is removed once the write has been answered and
one of two things is true: the writing process was the first to close the move, so the write was in time; or no move is
unfinished and the alias agrees with the last move that is done. Until then, the writing process puts the alias back to
what the audit says. If it dies, the tag is left behind. Any process that finds an alias that disagrees with the audit
looks for such a tag. If there is one, the write was late, and the alias is put back. Otherwise, someone moved the alias
outside pspnet, and the move is recorded and kept.
"""

import socket
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pspnet.errors import Busy, Problem, UserError
from pspnet.machine.process import user
from pspnet.registry import claimant
from pspnet.registry.alias import ChampionAlias
from pspnet.registry.ledger import Ledger
from pspnet.registry.records import ABANDONED, DONE, PENDING, Move, ProposedMove
from pspnet.registry.versions import CHALLENGER, CHAMPION, CHANGED, SHORT, Version, Versions
from pspnet.tracking.connection import without_retries

if TYPE_CHECKING:
    from mlflow.entities import Experiment
    from mlflow.tracking import MlflowClient

OUTSIDE_SECONDS = 1.0
OTHER_HOST_SECONDS = 30.0  # a claim from another host that has been idle this long is abandoned
ATTEMPTS = 50
LONGEST_WHY = 2000  # characters; MLflow allows longer tags
OUTSIDE = "the alias was moved outside pspnet"


@dataclass(frozen=True)
class Clock:
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], datetime] = lambda: datetime.now(UTC)


@dataclass(frozen=True)
class Position:
    """The state of the audit. A move claims `number`, and fails if another process has moved the alias since then."""

    number: int  # number of the next move
    recorded: int  # the champion according to the audit
    champion: int  # the champion according to the alias


@dataclass(frozen=True)
class Overtaken:
    """A move that was not made because another process or person was faster."""

    why: str


class Audit:
    def __init__(
        self, client: "MlflowClient", state: Path, versions: Versions, warn: Callable[[str], None],
        clock: Clock = Clock(), process: str = "",
    ) -> None:  # fmt: skip
        """`warn` prints a message for the user: the alias was put back, or was moved outside pspnet."""
        self._versions, self._warn, self._clock = versions, warn, clock
        self._model = versions.model
        self._process = process or uuid.uuid4().hex
        self.ledger = Ledger(client, state, versions.model)
        self.alias = ChampionAlias(versions, self._process)

    def moves(self) -> list[Move]:
        """Return all moves, oldest first, including unfinished ones."""
        return self.ledger.moves()

    def check(self, version: Version) -> None:
        """Raise an error if the version's files differ from those that were promoted."""
        moves = [move for move in self.moves() if move.state == DONE and move.to_version == version.number]
        promoted = [move for move in moves if move.content]  # a move made outside pspnet records no digest
        if promoted and promoted[-1].content != version.content:
            problem = f"has the digest {version.content[:SHORT]}"
            expected = f"{promoted[-1].content[:SHORT]}, as in move {promoted[-1].number} of the audit"
            raise UserError(Problem(f"{self._model} version {version.number}", problem, expected, CHANGED))

    def attempts(self) -> Iterator[Position]:
        """Yield the current position for each attempt to move the alias, at most ATTEMPTS times.

        Before each attempt, unfinished moves are settled.
        """
        for _ in range(ATTEMPTS):
            self.settle()
            position = self._position()
            if position is not None and position.champion == position.recorded:
                yield position

    def apply(self, proposed: ProposedMove, position: Position) -> Move | Overtaken:
        """Make the proposed move, unless another move has been made since `position` was read."""
        wanted = self._new_move(position.number, position.champion, proposed)
        claim = self.ledger.claim(wanted)
        if claim is None:
            return Overtaken(self.ledger.winner(wanted.number))
        done = self._finish(*claim)
        if done.state == DONE and done.process == wanted.process and done.to_version == wanted.to_version:
            return done
        reason = done.note or "another process took this number"
        return Overtaken(f"{done.kind} {done.number} was abandoned because {reason}")

    def busy(self) -> Busy:
        """Return the error for a move that was overtaken in every attempt."""
        return Busy(f"Other processes moved the champion of {self._model} {ATTEMPTS} times in a row. Try again later.")

    def settle(self) -> None:
        """Finish the moves of processes that are gone and wait for all other moves, until alias and audit agree."""
        for _ in range(ATTEMPTS):
            self._finish_all()
            if self._agree():
                return
        raise self.busy()

    def _finish_all(self) -> None:
        seen: dict[int, float] = {}
        while unfinished := self.ledger.unfinished():
            claim, move = unfinished
            now = self._clock.monotonic()
            if move.process == self._process:
                self._finish(claim, move)
            elif claimant.is_gone(move) or now - seen.setdefault(move.number, now) > OTHER_HOST_SECONDS:
                self._finish(claim, replace(move, note=f"finished by {user()} on {socket.gethostname()}"))
            else:
                self._clock.sleep(0.1)

    def _position(self) -> Position | None:
        """Return the number to claim and the champion it would replace, or None while a move is in progress.

        The order of the reads matters: a move that is not in the records appears as a claim or takes the number that we
        return.
        """
        records = self.ledger.records()
        newest = max(records, default=0)
        if self.ledger.claims() or (newest and records[newest].state == PENDING):
            return None
        done = [number for number, move in records.items() if move.state == DONE]
        return Position(
            number=newest + 1,
            recorded=records[max(done)].to_version if done else 0,
            champion=self.alias.read(),
        )

    def _agree(self) -> bool:
        """Return whether the alias agrees with the audit. If not, put it back or record a move made outside pspnet."""
        before = self._position()
        if before is None or before.champion == before.recorded:
            return before is not None
        late = self._is_late(before.champion, before.recorded)
        if not late:
            self._clock.sleep(OUTSIDE_SECONDS)  # a process with an earlier pspnet may be about to repair it
        if self._position() != before:  # another process has moved the alias while this one was reading
            return False
        if late:
            self._put_back(before.champion, before.recorded)
            return False
        outside = ProposedMove("outside", before.champion, OUTSIDE)
        if claim := self.ledger.claim(self._new_move(before.number, before.recorded, outside)):
            self._finish(*claim)
            self._warn_of_outside(before)
        return False

    def _warn_of_outside(self, found: Position) -> None:
        """Warn if the alias went back to an earlier champion: on purpose, or because a request was repeated."""
        earlier = [move.number for move in self.moves() if move.to_version == found.champion and move.kind != "outside"]
        if earlier and found.champion:
            self._warn(
                f"{self._model}: the alias {CHAMPION} went from version {found.recorded} to version {found.champion} "
                f"outside pspnet, and is left there. Move {earlier[-1]} had set it before: if nobody has set it "
                f"again now, a late write did, and `pspnet rollback --to {found.recorded}` undoes it."
            )

    def _is_late(self, champion: int, recorded: int) -> bool:
        return self._exists(recorded) and self.alias.may_be_late(champion)

    def _put_back(self, champion: int, recorded: int) -> None:
        self.alias.write(recorded)
        now = f"put back to version {recorded}" if recorded else "removed"
        undo = f" If someone set it on purpose: `pspnet rollback --to {champion}`." if champion else ""
        found = f"was set to version {champion}" if champion else "was removed"
        self._warn(f"{self._model}: the alias {CHAMPION} {found} by a late write; it is {now}.{undo}")
        self._repair()

    def _repair(self) -> None:
        """While the alias shows a write of this process and disagrees with the audit, put the alias back."""
        for _ in range(ATTEMPTS):
            if not self.alias.wrote(self.alias.read()):
                return self.alias.forget_writes()
            position = self._position()
            if position is None:  # our write may have interfered with a move in progress
                self._finish_all()
            elif position.champion == position.recorded or not self._exists(position.recorded):
                return self.alias.forget_writes()
            elif self.alias.wrote(position.champion):
                self.alias.write(position.recorded)
        raise self.busy()

    def _exists(self, version: int) -> bool:
        return not version or self._versions.exists(version)

    def _finish(self, claim: "Experiment | None", move: Move) -> Move:
        """Do steps 4 to 8. The result is the same if they are repeated, or if two processes do them at once."""
        self.ledger.record(move)
        closed = self.ledger.closed(move) or self._carry_out(move)  # closed: another process did it while we slept
        if claim:
            self.ledger.remove(claim.experiment_id)
        if self.alias.has_answered_writes():
            self._repair()
        return closed

    def _carry_out(self, move: Move) -> Move:
        """Write the alias, unless someone has moved it outside pspnet in the meantime, and close the record."""
        target = move.to_version
        for _ in range(ATTEMPTS):
            champion = self.alias.read()
            if champion == target:
                return self._close(replace(move, state=DONE))
            if champion != move.from_version or move.kind == "outside":
                recorded = self.ledger.champion()
                if champion == recorded or not self._is_late(champion, recorded):
                    abandoned = replace(move, state=ABANDONED, note=f"the champion was already {champion}")
                    return self._close(abandoned, outside=None if champion == recorded else champion)
            if not self._exists(target):
                return self._close(replace(move, state=ABANDONED, note=f"version {target} was already gone"))
            self.alias.write(target)
        raise self.busy()

    def _close(self, move: Move, outside: int | None = None) -> Move:
        """Close the move. The first process to close it decides how. `outside`: the alias, as set outside pspnet."""
        move, first = self.ledger.close(replace(move, finished=self._now()).closed())
        if first:  # our writes arrived before this
            self.alias.forget_writes()
        if move.state == DONE and move.to_version:
            with without_retries():
                if self._versions.alias(CHALLENGER) == move.to_version:
                    self._versions.remove_alias(CHALLENGER)
            self._versions.set_tags(move.to_version, {"promotion": str(move.number)})
        if move.state == ABANDONED and outside is not None:  # do this before a late write of this move can hide it
            proposed = ProposedMove("outside", outside, OUTSIDE)
            self.ledger.claim(self._new_move(move.number + 1, move.from_version, proposed))
        self.ledger.file(move)
        return move

    def _new_move(self, number: int, from_version: int, proposed: ProposedMove) -> Move:
        move = Move(
            number=number,
            kind=proposed.kind,
            from_version=from_version,
            to_version=proposed.to_version,
            who=user(),
            when=self._now(),
            why=proposed.why[:LONGEST_WHY],
            decision=proposed.decision,
            host=socket.gethostname(),
            process=self._process,
            pid=claimant.pid(),
            system=claimant.system(),
            content=proposed.content,
        )
        return move.signed(self._model)

    def _now(self) -> str:
        return self._clock.now().isoformat(timespec="seconds")
