"""Moves of the champion alias as data: the fields of a move, its signature, and what a list of moves tells."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal, Self

from pspnet.errors import Problem, UserError
from pspnet.registry.seal import is_signature, signature

PENDING, DONE, ABANDONED = "pending", "done", "abandoned"

Kind = Literal["promotion", "rollback", "outside", "seal"]


@dataclass(frozen=True)
class ProposedMove:
    """A move of the alias that has no number yet: where to, why, and by which decision."""

    kind: Kind
    to_version: int
    why: str
    decision: str = ""  # digest of the gate's decision
    content: str = ""  # digest of the files of `to_version`


@dataclass(frozen=True)
class Move:
    """One line of the audit. Version 0 means no version."""

    number: int
    kind: Kind
    from_version: int
    to_version: int
    who: str
    when: str
    why: str
    decision: str  # digest of the gate's decision
    host: str
    process: str  # a random id for the process
    pid: str = ""  # the pid, with the start time of the process
    system: str = ""  # identifies the system on which this pid is unique
    content: str = ""  # digest of the files of `to_version`
    signature: str = ""  # signature of all fields above, with PSPNET_AUDIT_KEY
    state: str = PENDING
    finished: str = ""
    note: str = ""
    closing: str = ""  # signature of the final state

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Self:
        values = {name: tags.get(name, "") for name in cls.__dataclass_fields__}  # a store may drop empty tags
        numbers = {name: int(values.pop(name) or 0) for name in ("number", "from_version", "to_version")}
        return cls(**numbers, **values)  # type: ignore[arg-type]

    def tags(self) -> dict[str, str]:
        return {key: str(value) for key, value in asdict(self).items()}

    def signed(self, model: str) -> Self:
        return replace(self, signature=signature(self._facts(model)))

    def closed(self) -> Self:
        """Return a copy of the move whose final state is signed."""
        return replace(self, closing=signature(self._outcome()))

    def is_signed(self, model: str) -> bool:
        """Return whether the signatures are valid. Without a key, every move counts as signed."""
        ended = self.state == PENDING or is_signature(self.closing, self._outcome())
        return ended and is_signature(self.signature, self._facts(model))

    def _facts(self, model: str) -> dict[str, str]:
        changing = {"signature", "closing", "state", "finished", "note"}
        return {"model": model} | {key: value for key, value in self.tags().items() if key not in changing}

    def _outcome(self) -> dict[str, str]:
        return {"move": self.signature, "state": self.state}


def previous_champion(moves: list[Move], existing: Collection[int]) -> int:
    """Return the version to roll back to by default. Two rollbacks in a row go back two versions."""
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
        raise UserError(Problem("rollback", "no earlier champion is on record", fix="Give a version with --to."))
    return earlier[-1]


def withdrawal(moves: list[Move], version: int) -> str | None:
    """Return a description of how a version was rolled back.

    Return None if it never was, or if it became champion again afterward.
    """
    reason = None
    for move in moves:
        if move.state != DONE:
            continue
        if move.kind == "rollback" and move.from_version == version:
            why = f": {move.why}" if move.why else ""
            reason = f"version {version} was rolled back by {move.who} at {move.when}{why}"
        if move.to_version == version:
            reason = None
    return reason
