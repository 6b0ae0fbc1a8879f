"""The ways to train that a study compares. Their kinds come from params.yaml's own unions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pspnet.config.finetune import UnlabeledParams
from pspnet.config.params import Params
from pspnet.config.pretrain import MethodParams
from pspnet.config.reading import validate
from pspnet.config.section import Section
from pspnet.errors import Problem, UserError

NONE = "none"
SCRATCH = "scratch"
Family = Literal["scratch", "control", "pretraining", "semi-supervised training", "both together"]


@dataclass(frozen=True)
class Arm:
    name: str
    pretraining: str = NONE  # kind of pretrain.method
    unlabeled: str = NONE  # kind of finetune.unlabeled
    shuffled: bool = False  # whether the pretrained weights are shuffled within each tensor

    @property
    def family(self) -> Family:
        if self.shuffled:
            return "control"
        if NONE not in (self.pretraining, self.unlabeled):
            return "both together"
        if self.pretraining != NONE:
            return "pretraining"
        return "scratch" if self.unlabeled == NONE else "semi-supervised training"


def _kinds(union: Any) -> dict[str, type[Section]]:
    """Return the sections of a union of sections, by kind."""
    return {get_args(section.model_fields["kind"].annotation)[0]: section for section in get_args(union)}


PRETRAINING, UNLABELED = (
    {kind: section for kind, section in _kinds(union).items() if kind != NONE}
    for union in (MethodParams, UnlabeledParams)
)


def all_arms() -> dict[str, Arm]:
    """Return every arm by name. Scratch comes first."""
    arms = [Arm(SCRATCH), *(Arm(kind, pretraining=kind) for kind in PRETRAINING)]
    arms += [Arm(f"{kind}_shuffled", pretraining=kind, shuffled=True) for kind in PRETRAINING]
    arms += [Arm(kind, unlabeled=kind) for kind in UNLABELED]
    arms += [Arm(f"{first}+{then}", first, then) for first in PRETRAINING for then in UNLABELED]
    return {arm.name: arm for arm in arms}


def usual_arms(params: Params) -> list[str]:
    """Return scratch, each method, and the params' own pretraining (or the last) shuffled and with a method on top."""
    own = params.pretrain.method.kind
    first, then = own if own != NONE else [*PRETRAINING][-1], next(iter(UNLABELED))
    return [SCRATCH, *UNLABELED, *PRETRAINING, f"{first}+{then}", f"{first}_shuffled"]


def chosen_arms(names: Sequence[str], params: Params, warn: Callable[[str], object]) -> list[Arm]:
    """Return the named arms, or the usual ones that fit the params. Scratch is always among them, for comparison."""
    known = all_arms()
    if unknown := [name for name in names if name not in known]:
        raise UserError([Problem("--arm", f"'{name}' is not an arm", ", ".join(known)) for name in unknown])
    if names:
        return [known[name] for name in dict.fromkeys([SCRATCH, *names])]
    fitting = []
    for arm in (known[name] for name in usual_arms(params)):
        try:
            with_arm(params, arm)
        except UserError as error:
            warn(f"{arm.name} is left out. {error}")
        else:
            fitting.append(arm)
    return fitting


def with_arm(params: Params, arm: Arm) -> Params:
    """Return the params of the arm. A kind that params.yaml does not use gets the example values of its fields."""
    pretrain = params.pretrain.model_dump() | {
        "method": _settings(PRETRAINING, arm.pretraining, params.pretrain.method)
    }
    finetune = params.finetune.model_dump() | {
        "unlabeled": _settings(UNLABELED, arm.unlabeled, params.finetune.unlabeled)
    }
    return validate(Params, params.model_dump() | {"pretrain": pretrain, "finetune": finetune}, f"arm {arm.name}")


def _settings(kinds: dict[str, type[Section]], kind: str, own: Any) -> dict[str, Any]:
    if kind in (NONE, own.kind):
        return {"kind": NONE} if kind == NONE else own.model_dump()
    fields = kinds[kind].model_fields
    return {"kind": kind} | {name: field.examples[0] for name, field in fields.items() if field.examples}
