import math
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pspnet.config.params import Params
from pspnet.errors import UserError
from pspnet.losses.segmentation import build_loss, supervised_loss
from pspnet.study.arms import PRETRAINING, SCRATCH, UNLABELED, all_arms, chosen_arms, usual_arms, with_arm
from pspnet.study.compute import Compute, compute_of
from pspnet.study.grid import Design, Run, grid, masks_of
from pspnet.study.identity import Identity
from pspnet.study.results import Results
from pspnet.study.training import Material, shuffled
from pspnet.training.finetune import build_network
from tests.parameters import demo_params
from tests.training.trainings import quiet

CPU = torch.device("cpu")
COMPUTES = {  # of methods in FLOPs per step; scratch takes 100
    "mean_teacher": (250.0, 0.0), "unimatch": (452.0, 0.0), "rotation": (100.0, 40.0), "jigsaw": (100.0, 41.0),
    "inpainting": (100.0, 90.0),
}  # fmt: skip


def runs(params: Params, material: Material, **design: object) -> list[Run]:
    arms = chosen_arms((), params, lambda text: None)
    computes = {}
    for arm in arms:
        finetune, pretrain = (
            COMPUTES.get(arm.unlabeled, (100.0, 0.0))[0],
            COMPUTES.get(arm.pretraining, (0.0, 300.0))[1],
        )
        computes[arm.name] = Compute(finetune, pretrain)
    usual = {"arms": arms, "masks": (3, 8), "seeds": 2, "steps": (100,), "pretraining_share": 1.0}
    identity = Identity.of(material, params, CPU)
    return grid(material, identity, params, Design(**{**usual, **design}), computes)  # type: ignore[arg-type]


@pytest.fixture
def large(params: Params) -> Params:
    """Params whose crops suit every method."""
    return params.model_copy(update={"pretrain": params.pretrain.model_copy(update={"crop_px": 96})})


def test_every_method_is_an_arm(large: Params) -> None:
    assert [*PRETRAINING][:3] == ["rotation", "jigsaw", "inpainting"]
    names = {arm.name for arm in chosen_arms((), large, pytest.fail)}
    assert {SCRATCH, *PRETRAINING, *UNLABELED, "jigsaw+mean_teacher", "jigsaw_shuffled"} == names
    assert names <= set(all_arms())


def test_without_a_method_of_its_own_a_study_combines_the_last() -> None:
    none = demo_params(pretrain__method={"kind": "none"})
    assert f"{[*PRETRAINING][-1]}_shuffled" in usual_arms(none)


def test_an_arm_that_does_not_fit_the_params_is_left_out_unless_it_is_named(params: Params) -> None:
    notes: list[str] = []
    names = [arm.name for arm in chosen_arms((), params, notes.append)]
    assert "inpainting" not in names
    assert any(note.startswith("inpainting is left out. ") for note in notes)
    assert [arm.name for arm in chosen_arms(("inpainting",), params, notes.append)] == [SCRATCH, "inpainting"]
    with pytest.raises(UserError, match="block_px"):
        with_arm(params, all_arms()["inpainting"])


def test_an_unknown_arm_is_refused_with_the_known_ones(params: Params) -> None:
    with pytest.raises(UserError, match="--arm: 'simclr' is not an arm; expected scratch, rotation"):
        chosen_arms(("simclr",), params, lambda text: None)


def test_an_arm_changes_only_its_method(params: Params) -> None:
    changed = with_arm(params, all_arms()["rotation+mean_teacher"])
    assert (changed.pretrain.method.kind, changed.finetune.unlabeled.kind) == ("rotation", "mean_teacher")
    assert with_arm(params, all_arms()["jigsaw"]) == params, "params.yaml's own settings"
    back = changed.model_copy(update={"pretrain": params.pretrain, "finetune": params.finetune})
    assert back == params
    same = changed.finetune.model_dump(exclude={"unlabeled"})
    assert same == params.finetune.model_dump(exclude={"unlabeled"})


@pytest.mark.parametrize("share", [0.5, 1.0, 3.0])
def test_scratch_for_the_same_compute_differs_by_less_than_two_percent(
    large: Params, material: Material, share: float
) -> None:
    found = runs(large, material, pretraining_share=share)
    scratch = {(run.masks, run.seed, run.steps): run for run in found if run.arm.name == SCRATCH}
    compared = [run for run in found if run.arm.name != SCRATCH]
    assert len(compared) == 4 * (len(usual_arms(large)) - 1)
    for run in compared:
        assert scratch[run.masks, run.seed, run.equal_steps].flops == pytest.approx(run.flops, rel=0.02)


def test_pretraining_computes_what_it_is_asked_to(large: Params, material: Material) -> None:
    own = {run.arm.name: run for run in runs(large, material, steps=(1000,)) if run.pretraining}
    for name in ("rotation", "jigsaw", "inpainting"):
        made = own[name].pretraining
        assert made is not None
        assert made.flops == pytest.approx(1000 * 100, rel=0.01)
        assert made.params.pretrain.epochs * 7 == made.steps


def test_runs_of_one_comparison_follow_each_other(large: Params, material: Material) -> None:
    blocks = [(run.masks, run.seed) for run in runs(large, material)]
    assert list(dict.fromkeys(blocks)) == [(3, 0), (3, 1), (8, 0), (8, 1)]
    assert blocks == sorted(blocks)


def test_a_run_takes_exactly_its_steps_and_measures_val_once(large: Params, material: Material) -> None:
    for run in runs(large, material):
        own = run.params.finetune
        per_epoch = math.ceil(4 / run.masks) * run.masks // own.batch_size
        assert round(own.epochs * per_epoch) == run.steps
        assert (own.validations, own.patience_validations) == (1, 0)
        assert own.color_jitter == large.finetune.color_jitter


def test_keys_name_the_arm_the_masks_the_seed_and_the_params(large: Params, material: Material) -> None:
    found = runs(large, material)
    assert len({run.key for run in found}) == len(found)
    assert [run.key for run in runs(large, material)] == [run.key for run in found]
    others = large.model_copy(update={"predict": large.predict.model_copy(update={"flip": True})})
    assert not {run.key for run in runs(others, material)} & {run.key for run in found}


def test_arms_share_a_backbone_where_only_fine_tuning_differs(large: Params, material: Material) -> None:
    found = {(run.arm.name, run.masks): run for run in runs(large, material) if run.seed == 0}
    same = [found[name, masks].pretraining for name in ("jigsaw", "jigsaw_shuffled") for masks in (3, 8)]
    assert len({made.key for made in same if made}) == 1


def test_numbers_of_masks_come_from_fractions_and_counts() -> None:
    assert masks_of(("1/64", "1/16", "1"), (16,), 3630) == [16, 57, 227, 3630]
    assert masks_of(("0.0001",), (), 100) == [1]
    with pytest.raises(UserError) as error:
        masks_of(("2", "half"), (101,), 100)
    assert len(error.value.problems) == 3


def test_flops_are_those_of_a_step_of_the_real_loop(params: Params, material: Material, tmp_path: Path) -> None:
    identity = Identity.of(material, params, CPU)
    plain, teacher = (
        compute_of(material, with_arm(params, all_arms()[name]), identity, Results(tmp_path), quiet)
        for name in (SCRATCH, "mean_teacher")
    )
    network = build_network(params.backbone, params.finetune, len(material.dataset.classes), 0)
    classes, own = material.dataset.classes, params.finetune
    loss_of = build_loss(own.loss, classes, [1] * len(classes), 255, own.align_corners, CPU)
    masks = torch.zeros(4, 32, 40, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        main, auxiliary = (loss_of(logits, masks) for logits in network(torch.rand(4, 3, 32, 40)))
        torch.autograd.backward(supervised_loss(main, auxiliary, 0.4))
    assert plain.finetune == counter.get_total_flops()
    assert plain.pretrain == 0
    assert teacher.finetune > 1.5 * plain.finetune
    assert len(list((tmp_path / "work/compute").iterdir())) == 2


def test_shuffled_weights_have_the_same_values_in_another_order(params: Params, material: Material) -> None:
    backbone, _ = material.start(params)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    after = shuffled(backbone, 0).state_dict()
    for name, tensor in after.items():
        assert torch.equal(tensor.flatten().sort().values, before[name].flatten().sort().values)
    assert not torch.equal(after["layer1.0.conv1.weight"], before["layer1.0.conv1.weight"])
