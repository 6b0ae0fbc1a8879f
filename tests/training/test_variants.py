"""Every weight of each variant of the network is trained."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pspnet.config.params import Params
from pspnet.errors import UserError
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.backbone.pretrained import PretrainedBackbone, random_backbone
from pspnet.model.bundle import Bundle
from pspnet.model.network import PSPNet
from tests.training.trainings import changed, run_finetune

GRAY = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def test_every_weight_of_every_variant_is_trained(params: Params, prepared: Path, tmp_path: Path) -> None:
    params = changed(
        params,
        backbone={"stem": "deep", "dilation": "contract"},
        finetune={"epochs": 1, "align_corners": True, "decoder": "low_level", "pyramid_weights": "learned"},
    )
    start = random_backbone(18, 0.125, 8, 5, "deep", "contract")
    (tmp_path / "backbone").mkdir()
    PretrainedBackbone("rotation", 18, 0.125, GRAY, {}, stem="deep").save(start, tmp_path / "backbone")
    run_finetune(params, prepared, tmp_path / "backbone", tmp_path)
    network = Bundle.load(tmp_path / "bundle").network
    own = network.architecture
    assert (own.stem, own.dilation, own.align_corners) == ("deep", "contract", True)
    assert (own.decoder, own.pyramid_weights) == ("low_level", "learned")
    torch.manual_seed(params.runtime.seed)
    before = PSPNet(own)
    before.backbone.load_state_dict(start.state_dict())
    untrained = dict(before.named_parameters())
    assert not [name for name, parameter in network.named_parameters() if torch.equal(parameter, untrained[name])]


def test_batches_of_one_image_train(params: Params, prepared: Path, tmp_path: Path) -> None:
    params = changed(params, finetune={"epochs": 1, "batch_size": 1})
    (tmp_path / "backbone").mkdir()
    PretrainedBackbone("none", 18, 0.125, GRAY, {}).save(random_backbone(18, 0.125, 8, 0), tmp_path / "backbone")
    run_finetune(params, prepared, tmp_path / "backbone", tmp_path)
    network = Bundle.load(tmp_path / "bundle").network
    assert network(torch.randn(1, 3, 40, 40)).isfinite().all()


@pytest.mark.parametrize("changes", [{"stem": "deep"}, {"width": 0.25}, {"depth": 34}])
def test_a_backbone_made_with_different_params_is_refused(
    changes: dict[str, Any], params: Params, prepared: Path, tmp_path: Path
) -> None:
    (tmp_path / "backbone").mkdir()
    PretrainedBackbone("none", 18, 0.125, GRAY, {}).save(random_backbone(18, 0.125, 8, 0), tmp_path / "backbone")
    with pytest.raises(UserError, match=r"contains a ResNet-18 with width 0\.125, stem seven"):
        run_finetune(changed(params, backbone=changes), prepared, tmp_path / "backbone", tmp_path)
