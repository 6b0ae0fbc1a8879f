"""The runs of a study: arms x masks x seeds, each with scratch for the same compute beside it, in a useful order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from pspnet.config.params import Params
from pspnet.errors import Problem, UserError
from pspnet.study.arms import NONE, SCRATCH, Arm, with_arm
from pspnet.study.compute import Compute
from pspnet.study.identity import Identity
from pspnet.study.training import PRETRAINED_ON, Material, with_steps

SAME = 0.02  # runs of scratch whose steps differ by less count as one


@dataclass(frozen=True)
class Design:
    """What a person asks for."""

    arms: Sequence[Arm]
    masks: Sequence[int]
    seeds: int
    steps: Sequence[int]  # of fine-tuning, without what is added to scratch
    pretraining_share: float  # compute of pretraining, as a multiple of scratch's


@dataclass(frozen=True)
class Pretraining:
    """A backbone that several runs share: it needs no masks."""

    kind: str
    seed: int
    params: Params
    steps: int
    flops: float
    key: str


@dataclass(frozen=True)
class Run:
    arm: Arm
    masks: int
    seed: int
    steps: int
    equal_steps: int  # of scratch, for the same compute
    flops: float  # with pretraining
    params: Params
    pretraining: Pretraining | None
    key: str

    @property
    def name(self) -> str:
        return f"{self.arm.name}, {self.masks} masks, {self.steps} steps, seed {self.seed}"


def masks_of(fractions: Sequence[str], masks: Sequence[int], available: int) -> list[int]:
    """Return the numbers of masks for these fractions and counts."""
    problems, found = [], set(masks)
    for text in fractions:
        try:
            share = Fraction(text)
        except (ValueError, ZeroDivisionError):
            share = Fraction(0)
        if 0 < share <= 1:
            found.add(max(1, round(share * available)))
        else:
            problems.append(Problem("--fraction", f"is '{text}'", "more than 0 and at most 1, such as 1/16"))
    expected = f"1 to {available:,}, the number of masks in train"
    problems += [Problem("--masks", f"is {count}", expected) for count in masks if not 1 <= count <= available]
    if problems:
        raise UserError(problems)
    return sorted(found)


def grid(
    material: Material, identity: Identity, params: Params, design: Design, computes: dict[str, Compute]
) -> list[Run]:
    """List all runs. A comparison is complete before the next begins.

    `computes`: of each arm, by name.
    """
    runs = (
        run
        for steps in design.steps
        for masks in design.masks
        for seed in range(design.seeds)
        for run in _Block(material, identity, params, design, computes, steps, masks, seed).runs()
    )
    return list({run.key: run for run in runs}.values())  # scratch with more steps may be asked for twice


@dataclass(frozen=True)
class _Block:
    """The runs to compare with each other: the same steps, masks and seed."""

    material: Material
    identity: Identity
    params: Params
    design: Design
    computes: dict[str, Compute]
    steps: int
    masks: int
    seed: int

    def runs(self) -> Iterator[Run]:
        arms = [arm for arm in self.design.arms if arm.name != SCRATCH]
        plain = self.computes[SCRATCH].finetune
        pretrainings = {arm.name: self._pretraining(arm) for arm in arms}
        totals = {
            arm.name: self.steps * self.computes[arm.name].finetune + (made.flops if made else 0)
            for arm in arms
            for made in [pretrainings[arm.name]]
        }
        equal = _merged({name: round(total / plain) for name, total in totals.items()})
        scratch = next(arm for arm in self.design.arms if arm.name == SCRATCH)
        yield self._run(scratch, self.steps, self.steps, plain * self.steps, None)
        made = {self.steps}
        for arm in arms:
            yield self._run(arm, self.steps, equal[arm.name], totals[arm.name], pretrainings[arm.name])
            if (longer := equal[arm.name]) not in made:
                made.add(longer)
                yield self._run(scratch, longer, longer, plain * longer, None)

    def _pretraining(self, arm: Arm) -> Pretraining | None:
        if arm.pretraining == NONE:
            return None
        params, per_step = with_arm(self.params, arm), self.computes[arm.name].pretrain
        images = sum(self.material.dataset.images[split] for split in PRETRAINED_ON)
        per_epoch = max(1, images // params.pretrain.batch_size)
        wanted = self.design.pretraining_share * self.steps * self.computes[SCRATCH].finetune
        epochs = max(1, round(wanted / (per_step * per_epoch)))
        params = params.model_copy(update={"pretrain": params.pretrain.model_copy(update={"epochs": epochs})})
        params, steps = _seeded(params, self.seed), epochs * per_epoch
        key = self.identity.key("pretrain", params, ("backbone", "pretrain", "runtime"))
        return Pretraining(arm.pretraining, self.seed, params, steps, steps * per_step, key)

    def _run(self, arm: Arm, steps: int, equal_steps: int, flops: float, pretraining: Pretraining | None) -> Run:
        params = _seeded(with_arm(self.params, arm), self.seed)
        images = -(-params.finetune.batch_size // self.masks) * self.masks  # few are repeated, as in `filling`
        params = with_steps(params, steps, images)
        key = self.identity.key(
            "finetune", params, ("backbone", "finetune", "predict", "runtime"),
            masks=self.masks, shuffled=arm.shuffled, backbone=pretraining.key if pretraining else "",
        )  # fmt: skip
        return Run(arm, self.masks, self.seed, steps, equal_steps, flops, params, pretraining, key)


def _seeded(params: Params, seed: int) -> Params:
    return params.model_copy(update={"runtime": params.runtime.model_copy(update={"seed": seed})})


def _merged(steps: dict[str, int]) -> dict[str, int]:
    """Give the same steps to arms that compute nearly as much, so that they share a run of scratch."""
    merged: dict[str, int] = {}
    first = 0
    for name, count in sorted(steps.items(), key=lambda item: item[1]):
        first = first if count <= (1 + SAME) * first else count
        merged[name] = first
    return merged
