import json
from pathlib import Path

import pytest
import torch

from pspnet.errors import UserError
from pspnet.model.backbone.digest import digest
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.backbone.pretrained import PretrainedBackbone, random_backbone
from pspnet.model.backbone.resnet import ResNet
from pspnet.model.backbone.weights import load_weights, save_weights
from pspnet.model.bundle import Bundle
from pspnet.model.network import Architecture, PSPNet

GRAY = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def bundle(seed: int = 0) -> Bundle:
    torch.manual_seed(seed)
    network = PSPNet(Architecture(18, 0.125, 8, 3, dropout=0.1)).eval()
    return Bundle(
        network, GRAY, ("a", "b", "c"), ((0, 0, 0), (1, 2, 3), (9, 9, 9)), "none", {"train": "fingerprint"}, "digest"
    )


def test_a_bundle_predicts_the_same_after_a_round_trip(tmp_path: Path) -> None:
    before = bundle()
    before.save(tmp_path)
    after = Bundle.load(tmp_path)
    images = torch.randn(2, 3, 40, 56)
    assert torch.equal(before.network(images), after.network(images))
    assert (after.classes, after.colors, after.preprocessing) == (before.classes, before.colors, before.preprocessing)
    assert not after.network.training


def test_the_same_weights_make_the_same_bundle(tmp_path: Path) -> None:
    for name, seed in [("one", 0), ("again", 0), ("other", 1)]:
        (tmp_path / name).mkdir()
        bundle(seed).save(tmp_path / name)
    assert digest(tmp_path / "one") == digest(tmp_path / "again")
    assert digest(tmp_path / "one") != digest(tmp_path / "other")


def test_weights_load_completely_or_not_at_all(tmp_path: Path) -> None:
    save_weights(ResNet(18, 0.125, 8), tmp_path / "small")
    save_weights(ResNet(34, 0.125, 8), tmp_path / "deep")
    target = ResNet(18, 0.25, 8)
    with pytest.raises(UserError, match=r"of a different shape \(bn1.bias is \(8,\) and should be \(16,\)"):
        load_weights(target, tmp_path / "small")
    with pytest.raises(UserError, match="not known"):
        load_weights(ResNet(18, 0.125, 8), tmp_path / "deep")
    with pytest.raises(UserError, match="missing"):
        load_weights(ResNet(34, 0.125, 8), tmp_path / "small")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        load_weights(ResNet(18, 0.125, 8), tmp_path / "weights")


def test_a_different_format_version_is_refused(tmp_path: Path) -> None:
    bundle().save(tmp_path)
    facts = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(facts | {"format_version": 99}))
    with pytest.raises(UserError, match="format version 99; expected version 2"):
        Bundle.load(tmp_path)


def test_pretrained_weights_fit_a_finer_output_stride(tmp_path: Path) -> None:
    source = random_backbone(18, 0.125, 32, seed=3)
    PretrainedBackbone("rotation", 18, 0.125, GRAY, {}).save(source, tmp_path)
    target = random_backbone(18, 0.125, 8, seed=4)
    PretrainedBackbone.open(tmp_path).load_into(target, tmp_path)
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )


def test_a_backbone_of_a_different_shape_is_refused(tmp_path: Path) -> None:
    PretrainedBackbone("rotation", 18, 0.125, GRAY, {}).save(random_backbone(18, 0.125, 32, 0), tmp_path)
    with pytest.raises(
        UserError, match=r"contains a ResNet-18 with width 0\.125, stem seven .* expected ResNet-50 with width 1, "
    ):
        PretrainedBackbone.open(tmp_path).load_into(ResNet(50, 1.0, 8), tmp_path)


def test_without_pretraining_the_random_weights_are_kept(tmp_path: Path) -> None:
    PretrainedBackbone("none", 18, 0.125, GRAY, {}).save(random_backbone(18, 0.125, 8, 0), tmp_path)
    target = random_backbone(18, 0.125, 8, seed=4)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    PretrainedBackbone.open(tmp_path).load_into(target, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())
