"""The weights that `pretrain` starts from, which `backbone.weights` selects."""

from pathlib import Path

import pytest
import torch

from pspnet.config.params import Params
from pspnet.errors import UserError
from pspnet.model.backbone.preprocessing import IMAGENET
from pspnet.model.backbone.pretrained import PretrainedBackbone, random_backbone
from pspnet.model.backbone.weights import read_safetensors
from pspnet.model.bundle import Bundle
from tests.parameters import method_params
from tests.training.trainings import changed, run_finetune, run_pretrain


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Return weights as `pspnet weights import` writes them."""
    folder = tmp_path / "weights/imported"
    folder.mkdir(parents=True)
    facts = PretrainedBackbone("none", 18, 0.125, IMAGENET, {}, weights="moco")
    facts.save(random_backbone(18, 0.125, 32, seed=9), folder)
    return folder.parent


def first_convolution(folder: Path) -> torch.Tensor:
    return read_safetensors(folder / "backbone.safetensors")["conv1.weight"]


def test_without_a_method_imported_weights_are_passed_on(
    params: Params, prepared: Path, weights: Path, tmp_path: Path
) -> None:
    none = {"method": method_params("none")}
    params = changed(params, backbone={"weights": "imported"}, pretrain=none, finetune={"epochs": 1})
    run_pretrain(params, prepared, tmp_path, weights=weights)
    assert torch.equal(first_convolution(tmp_path / "backbone"), first_convolution(weights / "imported"))
    facts = PretrainedBackbone.open(tmp_path / "backbone")
    assert (facts.pretraining, facts.preprocessing) == ("moco", IMAGENET)
    run_finetune(params, prepared, tmp_path / "backbone", tmp_path)
    bundle = Bundle.load(tmp_path / "bundle")
    assert (bundle.pretraining, bundle.preprocessing) == ("moco", IMAGENET)


def test_a_method_trains_them_further(params: Params, prepared: Path, weights: Path, tmp_path: Path) -> None:
    slow = {"method": method_params("rotation"), "epochs": 1, "optimizer": {"learning_rate": 1e-6}}
    params = changed(params, backbone={"weights": "imported"}, pretrain=slow)
    run_pretrain(params, prepared, tmp_path, weights=weights)
    before, after = first_convolution(weights / "imported"), first_convolution(tmp_path / "backbone")
    assert not torch.equal(before, after)
    assert torch.allclose(before, after, atol=1e-4)
    assert PretrainedBackbone.open(tmp_path / "backbone").pretraining == "moco, rotation"


def test_different_imported_weights_start_a_different_training_run(
    params: Params, prepared: Path, weights: Path, tmp_path: Path
) -> None:
    """Training must not resume from a checkpoint that belongs to the old weights."""
    params = changed(params, backbone={"weights": "imported"}, pretrain={"epochs": 1})
    first = run_pretrain(params, prepared, tmp_path, weights=weights)
    PretrainedBackbone("none", 18, 0.125, IMAGENET, {}, weights="moco").save(
        random_backbone(18, 0.125, 32, seed=10), weights / "imported"
    )
    assert run_pretrain(params, prepared, tmp_path, weights=weights) != first


def test_missing_imported_weights_are_reported(params: Params, prepared: Path, tmp_path: Path) -> None:
    params = changed(params, backbone={"weights": "imported"})
    with pytest.raises(
        UserError, match=r"imported is missing; expected imported weights\. `pspnet weights import FILE"
    ):
        run_pretrain(params, prepared, tmp_path, weights=tmp_path)


def test_weights_for_gray_images_are_refused(params: Params, prepared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "weights/imported"
    folder.mkdir(parents=True)
    facts = PretrainedBackbone("none", 18, 0.125, IMAGENET, {}, image_channels=1, weights="moco")
    facts.save(random_backbone(18, 0.125, 32, seed=9), folder)
    with pytest.raises(UserError, match=r"and 1-channel input; expected ResNet-18 .* and 3-channel input"):
        run_pretrain(changed(params, backbone={"weights": "imported"}), prepared, tmp_path, weights=folder.parent)
