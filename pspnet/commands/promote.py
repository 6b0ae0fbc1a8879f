"""`pspnet promote` and `rollback`: the champion moves, or a person reads why not."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pspnet import terminal
from pspnet.commands.gate import Data, judge
from pspnet.commands.workshop import Workshop
from pspnet.errors import Problem, UserError
from pspnet.process import exclusive
from pspnet.promotion import Decision
from pspnet.registry.audit import DONE, Move, Wish, previous_champion
from pspnet.registry.versions import CHALLENGER, Version

LOCK = "registry.lock"  # in a checkout's state: its commands share downloads and measurements

Outcome = Literal["promoted", "is champion", "waiting", "refused", "held"]


@dataclass(frozen=True)
class Promotion:
    outcome: Outcome
    version: int
    decision: Decision | None = None  # none was needed
    move: Move | None = None

    def headline(self, model: str) -> str:
        found = {
            "promoted": "is now champion",
            "is champion": "is the champion already",
            "waiting": f"has passed and waits: pspnet promote {self.version} --approve",
            "held": f"is held; a person may decide: pspnet promote {self.version} --force --why TEXT",
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


class _Stays(Exception):
    def __init__(self, outcome: Outcome, decision: Decision | None = None) -> None:
        self.promotion_outcome, self.decision = outcome, decision


def promote(
    shop: Workshop, version: Version, data: Data, *, why: str = "", forced: bool = False, approved: bool = False
) -> Promotion:
    """The gate is asked about the champion there is then, and again if another is there when the alias is claimed."""
    decisions: list[Decision] = []

    def wish(champion: int) -> Wish:
        if champion == version.number:
            raise _Stays("is champion")
        decision = judge(shop, version, shop.versions.get(str(champion)) if champion else None, data, forced)
        decisions.append(decision)
        if decision.outcome != "passed":
            raise _Stays(decision.outcome, decision)
        if shop.params.promotion.approval == "manual" and not (approved or forced):
            raise _Stays("waiting", decision)
        reason = why or ("approved: " if approved else "") + decision.summary()
        return Wish("promotion", version.number, reason, decision.digest, version.content)

    try:
        with exclusive(shop.state / LOCK, "the registry from this checkout"):
            move = shop.audit.move(wish, lost=lambda text: terminal.err.print(f"{text}; deciding again", markup=False))
    except _Stays as stays:
        if stays.promotion_outcome == "waiting":
            shop.versions.set_tags(version.number, {"approval": "waiting"})
        return Promotion(stays.promotion_outcome, version.number, stays.decision)
    return Promotion("promoted", version.number, decisions[-1], move)


def rollback(shop: Workshop, to: str | None, why: str) -> Move:
    """Through the same claim and record; the gate is not asked, since a person knows better at that moment."""

    def wish(champion: int) -> Wish:
        moves = shop.audit.moves()
        champions = {move.to_version for move in moves if move.state == DONE}
        existing = [version.number for version in shop.versions.all()]
        version = shop.versions.get(to or str(previous_champion(moves, existing)))
        target = version.number
        if target == champion:
            raise UserError(Problem(shop.versions.model, f"has version {target} as champion already"))
        if target not in champions:
            fix = f"pspnet promote {target}"
            raise UserError(Problem(shop.versions.model, f"has never had version {target} as champion", fix=fix))
        return Wish("rollback", target, why, content=version.content)

    with exclusive(shop.state / LOCK, "the registry from this checkout"):
        return shop.audit.move(wish, lost=lambda text: terminal.err.print(f"{text}; looking again", markup=False))


def candidate(shop: Workshop, which: str | None) -> Version:
    """The version that was asked for, else the challenger."""
    if which is None and shop.versions.alias(CHALLENGER) is None:
        fix = "`make retrain` registers what it trained, or name a version: `pspnet models` lists them."
        raise UserError(Problem(shop.versions.model, "has no challenger to promote", fix=fix))
    return shop.versions.get(which or CHALLENGER)


def as_json(shop: Workshop, promotion: Promotion) -> str:
    return json.dumps({"headline": promotion.headline(shop.versions.model), **promotion.facts()})


def tell(shop: Workshop, promotion: Promotion) -> None:
    good = promotion.outcome in ("promoted", "is champion")
    terminal.out.print(promotion.headline(shop.versions.model), style="green" if good else "yellow", markup=False)
    if promotion.decision:
        for reason in promotion.decision.reasons:
            mark = "[green]passed[/]" if reason.passed else "[red]not passed[/]"
            terminal.out.print(f"  {mark}  {reason.rule}: ", end="")
            terminal.out.print(reason.text, markup=False)
