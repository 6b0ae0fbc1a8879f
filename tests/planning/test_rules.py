"""The planning rules, for a laptop and for a fast GPU."""

from dataclasses import replace

import pytest

from pspnet.config.params import Params
from pspnet.planning.device import Device, Precision, Step
from pspnet.planning.facts import DataFacts
from pspnet.planning.rules import Plan, Rung
from tests.planning.laptop import LAPTOP, laptop_seconds, params_of

# These speeds are assumed, not measured, because no GPU was available.
GPU = Device("cuda", cores=16, precision="bf16")
GPU_SPEEDUP = 500

STEEL = DataFacts(
    train_masks=2500,
    val_images=400,
    height_px=200,
    width_px=200,
    class_shares={"background": 0.877, "inclusion": 0.021, "patches": 0.076, "scratches": 0.026},
    thickness_px={"background": 131.0, "inclusion": 8.6, "patches": 26.2, "scratches": 6.8},
    left_right_differ=0.07,
)
ROADS = replace(
    STEEL,
    train_masks=300,
    val_images=60,
    height_px=1080,
    width_px=1920,
    class_shares={"road": 0.5, "sky": 0.3, "car": 0.17, "pole": 0.015, "sign": 0.01, "rider": 0.005},
)


def gpu_seconds(step: Step, precision: Precision) -> float:
    return laptop_seconds(step, precision) / GPU_SPEEDUP


def planned(
    facts: DataFacts, device: Device, minutes: float, weights: str = "random", imported: Rung | None = None
) -> tuple[Params, Plan]:
    timing = laptop_seconds if device is LAPTOP else gpu_seconds
    return params_of(Plan(facts, device, timing, minutes, weights, imported))


def test_a_laptop_gets_a_narrow_network_and_whole_small_images() -> None:
    params, _ = planned(STEEL, LAPTOP, minutes=12)
    assert (params.backbone.depth, params.finetune.output_stride) == (18, 16)
    assert params.backbone.width <= 0.5
    assert (params.finetune.crop_height_px, params.finetune.crop_width_px) == (192, 192)
    assert (params.runtime.precision, params.runtime.threads) == ("fp32", 4)


def test_a_gpu_gets_the_full_width_network_for_the_same_minutes() -> None:
    params, _ = planned(ROADS, GPU, minutes=60)
    assert (params.backbone.depth, params.backbone.width) == (50, 1.0)
    assert params.runtime.precision == "bf16"
    assert params.finetune.crop_height_px * params.finetune.crop_width_px > 200_000
    laptop, _ = planned(ROADS, LAPTOP, minutes=60)
    assert laptop.backbone.width < 1
    assert laptop.finetune.crop_height_px * laptop.finetune.crop_width_px < 100_000


@pytest.mark.parametrize("minutes", [3, 30, 300])
@pytest.mark.parametrize("facts", [STEEL, ROADS])
@pytest.mark.parametrize("device", [LAPTOP, GPU])
def test_steps_and_validations_fill_the_minutes(facts: DataFacts, device: Device, minutes: float) -> None:
    params, plan = planned(facts, device, minutes)
    steps = params.finetune.epochs * (facts.train_masks // params.finetune.batch_size)
    seconds = steps * plan.step_seconds + params.finetune.validations * facts.val_images * 0.01
    assert 0.85 < (seconds + 5) / (60 * minutes) < 1
    assert params.finetune.validations * facts.val_images * 0.01 <= max(facts.val_images * 0.01, 0.09 * 60 * minutes)


def test_left_and_right_are_not_swapped_where_they_differ() -> None:
    params, _ = planned(replace(STEEL, left_right_differ=0.6), LAPTOP, minutes=12)
    assert params.finetune.flip_probability == 0


def test_several_rare_classes_get_weights() -> None:
    params, _ = planned(ROADS, LAPTOP, minutes=30)
    assert (params.finetune.loss.kind, params.finetune.loss.class_weights) == ("cross_entropy", "inverse_sqrt")
    params, _ = planned(STEEL, LAPTOP, minutes=30)
    assert (params.finetune.loss.kind, params.finetune.loss.class_weights) == ("cross_entropy", "none")


def test_weights_from_elsewhere_keep_their_network_architecture() -> None:
    params, _ = planned(STEEL, LAPTOP, minutes=12, weights="imagenet", imported=Rung(34, 1.0, 16))
    assert (params.backbone.depth, params.backbone.width, params.backbone.weights) == (34, 1.0, "imagenet")


def test_four_images_are_enough_for_a_plan() -> None:
    params, _ = planned(replace(STEEL, train_masks=4, val_images=1), LAPTOP, minutes=1)
    assert params.finetune.batch_size <= 4


def test_every_choice_has_a_reason_and_is_made_once() -> None:
    _, plan = planned(ROADS, GPU, minutes=60)
    keys = [choice.key for choice in plan.choices]
    assert len(keys) == len(set(keys))
    assert all(choice.reason for choice in plan.choices)
