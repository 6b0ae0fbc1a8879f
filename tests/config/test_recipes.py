"""The recipes use the authors' numbers, and each choice in params.yaml is used by at least one recipe."""

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pspnet.config.params import Params
from pspnet.config.reading import read_yaml
from tests.parameters import ROOT

RECIPES = {path.stem: read_yaml(path) for path in sorted((ROOT / "recipes").glob("*.yaml"))}

# hszhao/semseg: config/voc2012/voc2012_pspnet50.yaml, config/cityscapes/cityscapes_pspnet101.yaml, tool/train.py
PUBLISHED: dict[str, Any] = {
    "prepare.official_splits": "val_is_test",
    "backbone.width": 1.0,
    "backbone.stem": "deep",
    "backbone.dilation": "full",
    "backbone.weights": "imported",
    "pretrain.method.kind": "none",
    "finetune.batch_size": 16,
    "finetune.scale_min": 0.5,
    "finetune.scale_max": 2.0,
    "finetune.rotation_degrees": 10.0,
    "finetune.flip_probability": 0.5,
    "finetune.blur_probability": 0.5,
    "finetune.color_jitter": 0.0,
    "finetune.output_stride": 8,
    "finetune.align_corners": True,
    "finetune.decoder": "plain",
    "finetune.pyramid_weights": "none",
    "finetune.auxiliary_weight": 0.4,
    "finetune.loss.kind": "cross_entropy",
    "finetune.loss.class_weights": "none",
    "finetune.dropout": 0.1,
    "finetune.optimizer.kind": "sgd",
    "finetune.optimizer.learning_rate": 0.01,
    "finetune.optimizer.momentum": 0.9,
    "finetune.optimizer.weight_decay": 0.0001,
    "finetune.optimizer.decay_norms_and_biases": True,
    "finetune.optimizer.schedule": "poly",
    "finetune.optimizer.warmup_steps": 0,
    "finetune.optimizer.poly_power": 0.9,
    "finetune.optimizer.learning_rate_floor": 0.0,
    "finetune.optimizer.gradient_clip_norm": 0.0,
    "finetune.optimizer.accumulation_steps": 1,
    "finetune.backbone_learning_rate_factor": 1.0,
    "finetune.head_learning_rate_factor": 10.0,
    "finetune.frozen_layers": 0,
    "finetune.ema_decay": 0.0,
    "finetune.patience_validations": 0,
    "predict.scales": [1.0],
    "predict.flip": True,
    "runtime.precision": "fp32",
}
OWN = {
    "voc2012": {
        "dataset.source.layout": "voc",
        "backbone.depth": 50,
        "finetune.epochs": 50,
        "finetune.crop_height_px": 473,
        "finetune.crop_width_px": 473,
        "predict.window_px": 473,
        "predict.window_overlap_px": 473 - 316,  # the stride is 2/3 of the window, rounded up
    },
    "cityscapes": {
        "dataset.source.layout": "cityscapes",
        "backbone.depth": 101,
        "finetune.epochs": 200,
        "finetune.crop_height_px": 713,
        "finetune.crop_width_px": 713,
        "predict.window_px": 713,
        "predict.window_overlap_px": 713 - 476,
    },
}


# Recipes do not have to use these choices. The data layout and the policy for bad files depend on the data. A new
# self-supervised or semi-supervised method changes no recipe. The rest depends on the experiment (`--set`) or the
# machine.
LEFT_OUT = (
    "dataset.", "pretrain.method", "finetune.unlabeled", "prepare.problems.", "prepare.split_seed", "runtime.seed",
    "runtime.threads",
)  # fmt: skip
# A number counts as a switch if some recipe sets it to its neutral value (0 if allowed, otherwise 1).
NEUTRAL = {"finetune.backbone_learning_rate_factor": 1, "predict.scales": [1.0]}

# Each choice, with a recipe that uses it. A choice counts as used if either stage's optimizer uses it.
USED_BY = {
    "prepare.official_splits: kept": "start",
    "prepare.official_splits: val_is_test": "camvid",
    "prepare.official_splits: ignored": "rare-defects",
    "prepare.split_by: hash": "start",
    "prepare.split_by: stratified": "rare-defects",
    "prepare.parts": "many-gpus",
    "backbone.depth: 18": "camvid",
    "backbone.depth: 34": "thin-structures",
    "backbone.depth: 50": "start",
    "backbone.depth: 101": "cityscapes",
    "backbone.depth: 152": "many-gpus",
    "backbone.width": "camvid",
    "backbone.stem: seven": "start",
    "backbone.stem: deep": "voc2012",
    "backbone.stem: deep_narrow": "camvid-two-hours",
    "backbone.dilation: full": "start",
    "backbone.dilation: contract": "many-gpus",
    "backbone.weights: random": "start",
    "backbone.weights: imagenet": "rare-defects",
    "backbone.weights: imported": "voc2012",
    "pretrain.epochs": "start",
    "pretrain.scale_min": "start",
    "pretrain.rotation_degrees": "large-images",
    "pretrain.blur_probability": "large-images",
    "pretrain.output_stride: 8": "thin-structures",
    "pretrain.output_stride: 16": "start",
    "pretrain.output_stride: 32": "camvid",
    "optimizer.kind: adamw": "start",
    "optimizer.kind: sgd": "voc2012",
    "optimizer.kind: rmsprop": "thin-structures",
    "optimizer.decay_norms_and_biases: false": "camvid-two-hours",
    "optimizer.decay_norms_and_biases: true": "start",
    "optimizer.schedule: poly": "start",
    "optimizer.schedule: cosine": "rare-defects",
    "optimizer.learning_rate_floor": "many-gpus",
    "optimizer.gradient_clip_norm": "thin-structures",
    "optimizer.accumulation_steps": "large-images",
    "finetune.rotation_degrees": "camvid-two-hours",
    "finetune.blur_probability": "voc2012",
    "finetune.color_jitter": "start",
    "finetune.output_stride: 8": "start",
    "finetune.output_stride: 16": "camvid",
    "finetune.output_stride: 32": "large-images",
    "finetune.align_corners: false": "start",
    "finetune.align_corners: true": "voc2012",
    "finetune.decoder: plain": "start",
    "finetune.decoder: low_level": "camvid-two-hours",
    "finetune.pyramid_weights: none": "start",
    "finetune.pyramid_weights: learned": "thin-structures",
    "finetune.loss.kind: cross_entropy": "start",
    "finetune.loss.kind: cross_entropy_dice": "camvid-two-hours",
    "finetune.loss.kind: dice": "thin-structures",
    "finetune.loss.kind: focal": "rare-defects",
    "finetune.loss.kind: ohem": "many-gpus",
    "finetune.loss.class_weights: none": "start",
    "finetune.loss.class_weights: given": "thin-structures",
    "finetune.loss.class_weights: median_frequency": "rare-defects",
    "finetune.loss.class_weights: inverse_sqrt": "camvid-two-hours",
    "optimizer.warmup_steps": "start",
    "finetune.backbone_learning_rate_factor": "rare-defects",
    "finetune.head_learning_rate_factor": "voc2012",
    "finetune.frozen_layers": "rare-defects",
    "finetune.ema_decay": "camvid-two-hours",
    "finetune.patience_validations": "rare-defects",
    "predict.scales": "many-gpus",
    "predict.flip: false": "start",
    "predict.flip: true": "voc2012",
    "runtime.precision: fp32": "start",
    "runtime.precision: bf16": "many-gpus",
    "runtime.compile: false": "start",
    "runtime.compile: true": "many-gpus",
    "promotion.min_mean_iou": "camvid",
    "promotion.gain_measured_by: difference": "camvid",
    "promotion.gain_measured_by: lower_end": "start",
    "promotion.approval: auto": "camvid",
    "promotion.approval: manual": "large-images",
    "serve.max_images": "start",
}


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def value(recipe: str, path: str) -> Any:
    content: Any = RECIPES[recipe]
    for key in path.split("."):
        content = content[key]
    return content


def choices() -> dict[str, set[str]]:
    """Map each choice to the recipes that use it."""
    found: dict[str, set[str]] = {}
    for path, field in fields(Params):
        if path.startswith(LEFT_OUT):
            continue
        name = path.partition(".")[2] if ".optimizer." in path else path
        values = {recipe: value(recipe, path) for recipe in RECIPES}
        if get_origin(field.annotation) is Literal or field.annotation is bool:
            for one in get_args(field.annotation) or (False, True):
                found.setdefault(f"{name}: {str(one).lower()}", set()).update(r for r in values if values[r] == one)
            continue
        zero_is_allowed = any(getattr(bound, "ge", None) == 0 for bound in field.metadata)
        neutral = NEUTRAL.get(path, 0 if zero_is_allowed else 1)
        if neutral in values.values():
            found.setdefault(name, set()).update(recipe for recipe in values if values[recipe] != neutral)
    return found


@pytest.mark.parametrize("recipe", OWN)
def test_the_published_recipes_have_the_published_numbers(recipe: str) -> None:
    published = PUBLISHED | OWN[recipe]
    assert {path: value(recipe, path) for path in published} == published


def test_each_choice_in_the_params_is_used_by_a_recipe() -> None:
    found = choices()
    assert sorted(found) == sorted(USED_BY)
    assert {choice: recipe for choice, recipe in USED_BY.items() if recipe not in found[choice]} == {}


def test_each_recipe_begins_with_a_comment_that_states_its_purpose() -> None:
    for recipe in RECIPES:
        assert (ROOT / f"recipes/{recipe}.yaml").read_text().startswith("# ")
