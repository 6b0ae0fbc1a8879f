"""A fake laptop with assumed speeds, so that tests can plan without timing anything."""

from pspnet.config.params import Params
from pspnet.config.reading import parse_value, validate
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.planning.device import Device, Precision, Step
from pspnet.planning.facts import DataFacts
from pspnet.planning.planning import planned
from pspnet.planning.rules import Measured, Plan, duration, made
from tests.parameters import ROOT

LAPTOP = Device("cpu", cores=4, precision="fp32")
VAL_IMAGE_SECONDS = 0.01


def laptop_seconds(step: Step, precision: Precision) -> float:
    """Return the seconds of a step: 0.2 for 16 crops of 192 x 192 px at width 0.25, growing with
    pixels and channels.
    """
    pixels = step.batch_size * step.height_px * step.width_px / (16 * 192 * 192)
    depth = {18: 1, 34: 1.6, 50: 2}[step.architecture.depth]
    stride = {16: 1, 8: 3}[step.architecture.output_stride]
    return float(0.2 * pixels * depth * stride * (step.architecture.width / 0.25) ** 1.4)


def params_of(plan: Plan) -> tuple[Params, Plan]:
    """Return the params of a plan for a loop that takes no longer than its steps."""
    made(plan)
    plan.choices += duration(plan, Measured(plan.step_seconds, VAL_IMAGE_SECONDS))
    text = planned((ROOT / "recipes/start.yaml").read_text(encoding="utf-8"), plan.choices)
    return validate(Params, parse_value(text, "the plan"), "the plan"), plan


def planned_for(dataset: PreparedDataset, minutes: float = 3) -> Params:
    return params_of(Plan(DataFacts.of(dataset), LAPTOP, laptop_seconds, minutes, "random"))[0]
