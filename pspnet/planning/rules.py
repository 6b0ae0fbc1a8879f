"""The rules that turn facts about data, device and time into params, each with its reason.

A rule is a function that yields choices. It can read the choices made by earlier rules. The numbers come from
`benchmarks/ideas.py` and `benchmarks/minutes.py`. The results are in docs/benchmarks.md.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pspnet.model.backbone.resnet import Depth, OutputStride
from pspnet.model.network import Architecture
from pspnet.planning.device import Device, Step, Timing
from pspnet.planning.facts import DataFacts


class Choice(NamedTuple):
    key: str
    value: Any
    reason: str


class Rung(NamedTuple):
    depth: Depth
    width: float
    output_stride: OutputStride


LADDER = (Rung(18, 0.25, 16), Rung(18, 0.5, 16), Rung(18, 1.0, 16), Rung(50, 1.0, 16), Rung(50, 1.0, 8))
# Images needed for each rung. If a network sees fewer images, the rung before it is used.
IMAGES_NEEDED = (0, 8_000, 60_000, 150_000, 400_000)
CROP_PIXELS = {"cpu": 320 * 240, "cuda": 473 * 473}
STEP_PIXELS = {"cpu": 16 * 192 * 192, "cuda": 16 * 473 * 473}
LOADED_SHARE = 0.9  # share of the time spent on steps; the rest is for loading and validation
START_SECONDS = 5  # time until the first step: imports, the network, the loader
SPARE_SHARE = 0.04  # share of the time kept for checkpoints and for a machine that becomes slower after timing
VALIDATION_SHARE = 0.08  # largest share of the time that validation may take
MOST_VALIDATIONS = 20
SAME = 0.15  # a direction can be mirrored if its two ends differ by less than this
RARE = 0.02  # share of the pixels below which a class is rare


@dataclass
class Plan:
    facts: DataFacts
    device: Device
    timing: Timing
    minutes: float
    weights: str  # backbone.weights, chosen by the user: random, imagenet or imported
    imported: Rung | None = None  # the network that fits those weights
    choices: list[Choice] = field(default_factory=list)
    step_seconds: float = 0.0  # seconds per step of the chosen network, without loading

    def __getitem__(self, key: str) -> Any:
        return next(choice.value for choice in self.choices if choice.key == key)

    @property
    def seconds(self) -> float:
        return 60 * self.minutes


def made(plan: Plan) -> Plan:
    """Return `plan` with the choices of all rules."""
    for rule in RULES:
        plan.choices += list(rule(plan))
    return plan


def crop(plan: Plan) -> Iterator[Choice]:
    """Use whole images if they are small, otherwise the largest crop of the same shape that this device trains
    quickly.
    """
    facts, limit = plan.facts, CROP_PIXELS[plan.device.kind]
    factor = min(1.0, math.sqrt(limit / (facts.height_px * facts.width_px)))
    reason = f"images are {facts.width_px} x {facts.height_px} px"
    if factor < 1:
        reason += f"; a crop on a {plan.device.kind} has at most about {limit:,} pixels"
    for side, length in (("height", facts.height_px), ("width", facts.width_px)):
        yield Choice(f"finetune.crop_{side}_px", max(32, 16 * int(length * factor / 16)), reason)


def scales(plan: Plan) -> Iterator[Choice]:
    reason = "as in the recipes; other ranges are not measured yet"
    yield Choice("finetune.scale_min", 0.75, reason)
    yield Choice("finetune.scale_max", 1.5, reason)


def batch(plan: Plan) -> Iterator[Choice]:
    pixels = plan["finetune.crop_height_px"] * plan["finetune.crop_width_px"]
    fitting = max(4, 2 ** int(math.log2(STEP_PIXELS[plan.device.kind] / pixels)))
    size = min(fitting, 16, max(2, plan.facts.train_masks))
    yield Choice("finetune.batch_size", size, f"{plan.facts.train_masks:,} masks in train, {pixels:,} pixels per crop")
    yield Choice("finetune.optimizer.accumulation_steps", 1, "the batch fits into memory")


def directions(plan: Plan) -> Iterator[Choice]:
    differ = plan.facts.left_right_differ
    said = f"left and right differ by {differ:.0%}"
    yield Choice("finetune.flip_probability", 0.5 if differ < SAME else 0.0, said)
    yield Choice("finetune.rotation_degrees", 0.0, "not measured yet; objects keep their orientation")


def colors(plan: Plan) -> Iterator[Choice]:
    yield Choice("finetune.color_jitter", 0.2, "as in the recipes; other strengths are not measured yet")
    yield Choice("finetune.blur_probability", 0.0, "costs time; not measured yet")


def network(plan: Plan) -> Iterator[Choice]:
    """Choose the best network that still sees enough images in the time available."""
    chosen, per_step, seen = _climb(plan)
    plan.step_seconds = per_step
    reason = (
        f"{per_step:.2f} s per step here: {seen:,} images in {plan.minutes:g} minutes"
        if plan.imported is None
        else f"fixed by backbone.weights: {plan.weights}"
    )
    yield Choice("backbone.depth", chosen.depth, reason)
    yield Choice("backbone.width", chosen.width, reason)
    yield Choice("finetune.output_stride", chosen.output_stride, "stride 8 costs about three times as much")
    yield Choice("backbone.weights", plan.weights, "kept: only you know whether you have weights from elsewhere")
    thinnest = min(plan.facts.thickness_px.values(), default=math.inf)
    yield Choice(
        "finetune.decoder",
        "low_level",
        f"the thinnest class is {thinnest:.0f} px wide; without it, thin objects are lost",
    )


def _climb(plan: Plan) -> tuple[Rung, float, int]:
    """Return the chosen rung, its seconds per step, and the number of images it sees in the available time."""
    rungs = [(plan.imported, 0)] if plan.imported else list(zip(LADDER, IMAGES_NEEDED, strict=True))
    best: tuple[Rung, float, int] | None = None
    for rung, needed in rungs:
        if best is not None and best[2] < needed:  # a larger network would see even fewer
            break
        per_step = plan.timing(step_of(plan, rung), plan.device.precision)
        seen = round(plan.seconds * LOADED_SHARE / per_step) * plan["finetune.batch_size"]
        if best is not None and seen < needed:
            break
        best = rung, per_step, seen
    assert best is not None  # the first rung does not need any images
    return best


def step_of(plan: Plan, rung: Rung) -> Step:
    classes = max(2, len(plan.facts.class_shares))
    architecture = Architecture(rung.depth, rung.width, rung.output_stride, classes, 0.1, decoder="low_level")
    size = plan["finetune.crop_height_px"], plan["finetune.crop_width_px"]
    return Step(architecture, *size, plan["finetune.batch_size"])


def loss(plan: Plan) -> Iterator[Choice]:
    rare = [name for name, share in plan.facts.class_shares.items() if 0 < share < RARE]
    several = len(plan.facts.class_shares) > 4 and len(rare) > 1
    said = f"{', '.join(rare)}: under {RARE:.0%} of the pixels" if rare else "no class is rare"
    reason = "Dice as well makes a step of CamVid a third slower, and gains nothing in the same time"
    yield Choice("finetune.loss.kind", "cross_entropy", reason)
    if several:
        said += "; with weights, CamVid gained 0.057 in two minutes"
    yield Choice("finetune.loss.class_weights", "inverse_sqrt" if several else "none", said)
    yield Choice("finetune.auxiliary_weight", 0.4, "as published")


def optimizer(plan: Plan) -> Iterator[Choice]:
    small = plan["backbone.width"] < 1
    rate = 0.002 if small else 0.001
    yield Choice("finetune.optimizer.kind", "adamw", "as in the recipes from random weights; SGD not measured yet")
    yield Choice(
        "finetune.optimizer.learning_rate",
        rate,
        "twice as much brought no gain" if small else "for the full width; not measured yet",
    )
    yield Choice("finetune.optimizer.weight_decay", 0.02, "AdamW's decay; norms and biases are exempt")
    yield Choice("finetune.optimizer.decay_norms_and_biases", False, "AdamW's decay; norms and biases are exempt")
    yield Choice("finetune.optimizer.schedule", "poly", "as published")
    yield Choice("finetune.backbone_learning_rate_factor", 1.0, "weak weights need the full rate")
    yield Choice("finetune.head_learning_rate_factor", 1.0, "as in the recipes; not measured yet")
    yield Choice("finetune.frozen_layers", 0, "all layers learn")


def machine(plan: Plan) -> Iterator[Choice]:
    device = plan.device
    yield Choice("runtime.threads", device.cores if device.kind == "cpu" else 1, f"{device.cores} cores")
    yield Choice("runtime.precision", device.precision, "the faster of the two here")
    yield Choice("runtime.compile", False, "compiling takes minutes and needs a C++ compiler; not measured here")


def pretraining(plan: Plan) -> Iterator[Choice]:
    reason = "no method has shown a measurable gain over training longer: docs/benchmarks.md"
    yield Choice("pretrain.method", {"kind": "none"}, reason)


def images_without_masks(plan: Plan) -> Iterator[Choice]:
    yield Choice("finetune.unlabeled", {"kind": "none"}, "the other methods are not measured yet: docs/unlabeled.md")


def windows(plan: Plan) -> Iterator[Choice]:
    side = 2 * max(plan["finetune.crop_height_px"], plan["finetune.crop_width_px"])
    yield Choice("predict.window_px", side, "twice the crop: the largest context the network has learned to use")
    yield Choice("predict.window_overlap_px", side // 4, "a quarter of the window")
    yield Choice("predict.scales", [1.0], "more scales multiply the cost of every prediction")
    yield Choice("predict.flip", False, "mirroring doubles the cost of every prediction")


Rule = Callable[[Plan], Iterator[Choice]]
RULES: tuple[Rule, ...] = (
    crop, scales, batch, directions, colors, network, loss, optimizer, machine, pretraining,
    images_without_masks, windows,
)  # fmt: skip


class Measured(NamedTuple):
    """How long the real loop takes on this data, including loading."""

    step_seconds: float
    val_image_seconds: float


def duration(plan: Plan, measured: Measured) -> Iterator[Choice]:
    """As the last rule, choose as many passes over train as fit into the time."""
    facts, size = plan.facts, plan["finetune.batch_size"]
    per_epoch = max(1, facts.train_masks // size)
    one_validation = max(1e-3, facts.val_images * measured.val_image_seconds)
    validations = max(1, min(MOST_VALIDATIONS, int(VALIDATION_SHARE * plan.seconds / one_validation)))
    usable = plan.seconds * (1 - SPARE_SHARE) - START_SECONDS - validations * one_validation
    steps = max(1, int(usable / measured.step_seconds))
    validations = min(validations, steps)
    epochs = float(f"{steps / per_epoch:.3g}")
    said = f"{measured.step_seconds:.2f} s per step with loading: {steps:,} steps in {plan.minutes:g} minutes"
    yield Choice("finetune.epochs", epochs, said)
    share = validations * one_validation / plan.seconds
    yield Choice("finetune.validations", validations, f"{one_validation:.1f} s each, {share:.0%} of the time")
    yield Choice("finetune.patience_validations", 0, "the schedule already fills the planned time")
    warmup = round(0.05 * steps)
    yield Choice("finetune.optimizer.warmup_steps", warmup, "5% of the steps")
    decay = round(min(0.999, max(0.9, 1 - 10 / steps)), 4)
    yield Choice("finetune.ema_decay", decay, f"an average over about {1 / (1 - decay):,.0f} steps")
