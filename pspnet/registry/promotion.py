"""`pspnet promote`, `rollback` and `models seal`. The first two move the champion, or print why they do not."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from pspnet.errors import Problem, UserError
from pspnet.machine import terminal
from pspnet.machine.process import exclusive
from pspnet.registry.evidence import LocalData, decide_on
from pspnet.registry.gate import Decision
from pspnet.registry.model_registry import ModelRegistry
from pspnet.registry.records import DONE, Move, ProposedMove, previous_champion
from pspnet.registry.versions import CHALLENGER, CHAMPION, SHORT, Version

LOCK = "registry.lock"  # in the checkout's state, so that commands in the checkout share downloads and evaluations

Outcome = Literal["promoted", "is champion", "waiting", "refused", "held"]


@dataclass(frozen=True)
class Promotion:
    outcome: Outcome
    version: int
    decision: Decision | None = None  # None if no decision was needed
    move: Move | None = None

    def headline(self, model: str) -> str:
        found = {
            "promoted": "is now champion",
            "is champion": "is already the champion",
            "waiting": f"has passed and is waiting for approval: pspnet promote {self.version} --approve",
            "held": f"is held; a person may overrule that: pspnet promote {self.version} --force --why TEXT",
            "refused": "is not promoted",
        }
        return f"{model}: version {self.version} {found[self.outcome]}"

    def facts(self) -> dict[str, Any]:
        return {
            "outcome": self.outcome,
            "version": self.version,
            "decision": self.decision.as_json() | {"summary": self.decision.summary()} if self.decision else None,
            "move": asdict(self.move) if self.move else None,
        }


def promote(
    registry: ModelRegistry,
    version: Version,
    local: LocalData,
    *,
    why: str = "",
    forced: bool = False,
    approved: bool = False,
) -> Promotion:
    """Promote the version if the gate lets it replace the current champion.

    If another process moves the alias first, ask the gate again about the new champion.
    """
    with exclusive(registry.state / LOCK, "the registry from this checkout"):
        promotion = _promote(registry, version, local, why, forced, approved)
    if promotion.outcome == "waiting":
        registry.versions.set_tags(version.number, {"approval": "waiting"})
    return promotion


def _promote(
    registry: ModelRegistry, version: Version, local: LocalData, why: str, forced: bool, approved: bool
) -> Promotion:
    for position in registry.audit.attempts():
        if position.champion == version.number:
            return Promotion("is champion", version.number)
        champion = registry.versions.get(str(position.champion)) if position.champion else None
        decision = decide_on(registry, version, champion, local, forced)
        if decision.outcome != "passed":
            return Promotion(decision.outcome, version.number, decision)
        if registry.params.promotion.approval == "manual" and not (approved or forced):
            return Promotion("waiting", version.number, decision)
        reason = why or ("approved: " if approved else "") + decision.summary()
        proposed = ProposedMove("promotion", version.number, reason, decision.digest, version.content)
        applied = registry.audit.apply(proposed, position)
        if isinstance(applied, Move):
            return Promotion("promoted", version.number, decision, applied)
        terminal.err.print(f"{applied.why}; deciding again", markup=False)
    raise registry.audit.busy()


def rollback(registry: ModelRegistry, to: str | None, why: str) -> Move:
    """Make an earlier version champion again. The gate is not asked, because the person rolling back knows better."""
    with exclusive(registry.state / LOCK, "the registry from this checkout"):
        for position in registry.audit.attempts():
            target = _earlier_champion(registry, to, position.champion)
            proposed = ProposedMove("rollback", target.number, why, content=target.content)
            applied = registry.audit.apply(proposed, position)
            if isinstance(applied, Move):
                return applied
            terminal.err.print(f"{applied.why}; trying again", markup=False)
    raise registry.audit.busy()


def _earlier_champion(registry: ModelRegistry, to: str | None, champion: int) -> Version:
    """Return the version to roll back to: the given version, or else the previous champion."""
    moves = registry.audit.moves()
    champions = {move.to_version for move in moves if move.state == DONE}
    existing = [version.number for version in registry.versions.all()]
    version = registry.versions.get(to or str(previous_champion(moves, existing)))
    if version.number == champion:
        problem = f"already has version {version.number} as champion"
        raise UserError(Problem(registry.versions.model, problem))
    if version.number not in champions:
        problem = f"has never had version {version.number} as champion"
        raise UserError(Problem(registry.versions.model, problem, fix=f"pspnet promote {version.number}"))
    return version


def seal(registry: ModelRegistry, which: str) -> None:
    """Seal a version's files as they are now. If the version is champion, the audit also records the new digest."""
    version = registry.versions.seal(registry.versions.get(which))
    name = f"{registry.versions.model} version {version.number}"
    if registry.versions.alias(CHAMPION) == version.number:
        _record_seal(registry, version, name)
    terminal.out.print(f"{name} is sealed: its files have the digest {version.content[:SHORT]}.", markup=False)


def _record_seal(registry: ModelRegistry, version: Version, name: str) -> None:
    for position in registry.audit.attempts():
        if position.champion != version.number:
            raise UserError(Problem(name, f"is sealed, but version {position.champion} is now champion"))
        proposed = ProposedMove("seal", version.number, "its files were sealed", content=version.content)
        if isinstance(registry.audit.apply(proposed, position), Move):
            return
    raise registry.audit.busy()


def candidate(registry: ModelRegistry, which: str | None) -> Version:
    """Return the given version, or the challenger if none is given."""
    if which is None and registry.versions.alias(CHALLENGER) is None:
        fix = "`make retrain` registers what it trains. Or give the number of a version; `pspnet models` lists them."
        raise UserError(Problem(registry.versions.model, "has no challenger to promote", fix=fix))
    return registry.versions.get(which or CHALLENGER)


def show(registry: ModelRegistry, promotion: Promotion) -> None:
    good = promotion.outcome in ("promoted", "is champion")
    terminal.out.print(promotion.headline(registry.versions.model), style="green" if good else "yellow", markup=False)
    if promotion.decision:
        for reason in promotion.decision.reasons:
            mark = "[green]passed[/]" if reason.passed else "[red]not passed[/]"
            terminal.out.print(f"  {mark}  {reason.rule}: ", end="")
            terminal.out.print(reason.text, markup=False)
