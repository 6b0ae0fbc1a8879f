"""Imported weights are complete, and the network computes the same function as in the project it comes from."""

import argparse
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pspnet.checkout.foreign.checkpoints import Checkpoint, read_checkpoint
from pspnet.checkout.foreign.formats import FORMATS
from pspnet.checkout.foreign.translation import (
    ForeignWeights,
    adapt_first_convolution,
    adapt_preprocessing,
    import_weights,
)
from pspnet.errors import UserError
from pspnet.model.backbone.resnet import Depth
from tests.model.foreign import Trap, random_tensors
from tests.oracles.pspnet import HSZHAO, MMSEG, Mode, Names, Oracle, Pair

NARROW = 8  # dividing the channels by this changes neither names nor functions
Change = Callable[[dict[str, Tensor]], Any]


def imported(tensors: dict[str, Tensor], project: str) -> ForeignWeights:
    return import_weights(Checkpoint(tensors, (), ()), project, "file")


def close(ours: Tensor, theirs: Tensor) -> bool:
    assert theirs.std() > 0.01
    return bool((ours - theirs).abs().max() <= 1e-5 * max(1.0, float(theirs.abs().max())))


def names_of(prefix: str, stem: Callable[[int], Pair] | None = None) -> Names:
    """Return names for the features only, because only the features are compared."""

    def seven(number: int) -> Pair:
        return f"{prefix}conv{number + 1}", f"{prefix}bn{number + 1}"

    return Names(stem or seven, prefix, lambda number: ("", ""), ("", ""), "", ("", ""), "")


def timm_stem(number: int) -> Pair:
    return f"conv1.{3 * number}", ("conv1.1", "conv1.4", "bn1", "")[number]


MMSEG_7X7 = Names(
    lambda number: (f"backbone.conv{number + 1}", f"backbone.bn{number + 1}"), MMSEG.stages, MMSEG.bin,
    MMSEG.bottleneck, MMSEG.classifier, MMSEG.auxiliary, MMSEG.auxiliary_classifier,
)  # fmt: skip
WHOLE = [
    ("hszhao_pspnet50_voc", "hszhao", "deep", HSZHAO, Mode(50, contract=False, align_corners=True)),
    ("mmseg_pspnet_r50-d8_cityscapes", "mmseg", "deep_narrow", MMSEG, Mode(50, contract=True, align_corners=False)),
    ("mmseg_pspnet_r50b-d8_cityscapes", "mmseg", "seven", MMSEG_7X7, Mode(50, contract=True, align_corners=False)),
]
BACKBONES = [
    ("hszhao_resnet50_v2", "hszhao", "deep", names_of("")),
    ("torchvision_resnet50", "torchvision", "seven", names_of("")),
    ("torchvision_resnet18", "torchvision", "seven", names_of("")),
    ("torchvision_fcn_resnet50", "torchvision", "seven", names_of("backbone.")),
    ("timm_resnet50", "timm", "seven", names_of("")),
    ("timm_resnet50c", "timm", "deep_narrow", names_of("", timm_stem)),
    ("timm_resnet50s", "timm", "deep", names_of("", timm_stem)),
    ("moco_v2", "moco", "seven", names_of("module.encoder_q.")),
    ("moco_v3", "moco", "seven", names_of("module.base_encoder.")),
    ("simsiam", "moco", "seven", names_of("module.encoder.")),
    ("densecl_extracted", "densecl", "seven", names_of("")),
    ("densecl_raw", "densecl", "seven", names_of("encoder_q.0.")),
    ("swav", "swav", "seven", names_of("module.")),
    ("dino_hub", "dino", "seven", names_of("")),
    ("dino_full", "dino", "seven", names_of("module.backbone.")),
]


def test_every_project_has_an_example_here() -> None:
    assert {project for _, project, *_ in [*WHOLE, *BACKBONES]} == set(FORMATS)


@pytest.mark.parametrize(("name", "project", "stem", "names", "mode"), WHOLE, ids=[own[0] for own in WHOLE])
def test_an_imported_network_is_complete_and_computes_what_its_project_computes(
    name: str, project: str, stem: str, names: Names, mode: Mode
) -> None:
    tensors = random_tensors(name, narrow=NARROW)
    weights = imported(tensors, project)
    assert weights.coverage.share == 1
    assert not list(weights.coverage.faults())
    assert [part.name for part in weights.coverage.parts] == ["backbone", "pyramid", "head", "auxiliary_head"]
    assert (weights.depth, weights.width, weights.stem, weights.is_whole) == (50, 1 / NARROW, stem, True)
    network = weights.network(weights.classes, 3, 8, None).eval()
    other_mode = weights.network(weights.classes, 3, 8, not mode.align_corners).eval()
    images = torch.randn(1, 3, 65, 73)
    with torch.no_grad():
        expected, _ = Oracle(tensors, names, mode)(images)
        assert close(network(images), expected)
        # In a different mode, the same weights compute a different function.
        assert not close(other_mode(images), expected)
        other_dilation = Mode(50, contract=not mode.contract, align_corners=mode.align_corners)
        assert not close(network(images), Oracle(tensors, names, other_dilation)(images)[0])


@pytest.mark.parametrize(("name", "project", "stem", "names"), BACKBONES, ids=[own[0] for own in BACKBONES])
def test_an_imported_backbone_is_complete_and_keeps_its_features(
    name: str, project: str, stem: str, names: Names
) -> None:
    tensors = random_tensors(name, narrow=NARROW)
    weights = imported(tensors, project)
    assert weights.coverage.share == 1
    assert not list(weights.coverage.faults())
    depth: Depth = 18 if name.endswith("18") else 50
    assert (weights.depth, weights.width, weights.stem, weights.is_whole) == (depth, 1 / NARROW, stem, False)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = Oracle(tensors, names, Mode(depth, False, False, output_stride=32)).backbone(images)
        for ours, theirs in zip(weights.backbone(3).eval()(images), expected, strict=True):
            assert close(ours, theirs)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_wrapper_prefixes_are_removed(wrapper: str) -> None:
    tensors = {f"{wrapper}{name}": tensor for name, tensor in random_tensors("torchvision_resnet50").items()}
    assert imported(tensors, "torchvision").coverage.share == 1


def drop(name: str) -> Change:
    return lambda tensors: tensors.pop(name)


def put(name: str, *size: int) -> Change:
    return lambda tensors: tensors.update({name: torch.zeros(*size)})


@pytest.mark.parametrize(
    ("name", "project", "change", "fault"),
    [
        ("moco_v2", "moco", drop("module.encoder_q.layer3.4.bn2.running_var"),
         "1 missing: backbone.layer3.4.bn2.running_var"),
        ("hszhao_pspnet50_voc", "hszhao", drop("module.ppm.features.2.1.weight"),
         "1 missing: pyramid.branches.2.1.weight"),
        ("hszhao_pspnet50_voc", "hszhao", drop("module.aux.1.bias"), "1 missing: auxiliary_head.1.bias"),
        ("timm_resnet50", "timm", put("layer1.0.se.fc1.weight", 4, 256, 1, 1), "1 unknown: layer1.0.se.fc1.weight"),
        ("torchvision_resnet50", "torchvision", put("layer2.0.conv2.weight", 128, 4, 3, 3),
         "1 of a different shape: backbone.layer2.0.conv2.weight is (128, 4, 3, 3) and should be (128, 128, 3, 3)"),
    ],
)  # fmt: skip
def test_missing_tensors_are_named(name: str, project: str, change: Change, fault: str) -> None:
    tensors = random_tensors(name)
    change(tensors)
    coverage = imported(tensors, project).coverage
    assert list(coverage.faults()) == [fault]
    assert 0.99 < coverage.share < 1


@pytest.mark.parametrize(
    ("name", "project", "change", "message"),
    [
        ("timm_resnet50d", "timm", dict, "computes a different function: it averages before it downsamples"),
        ("torchvision_resnet50", "moco", dict,
         r"has no tensor names in moco format \(found conv1.weight, .*\); expected .*encoder_q.*names fit --from"),
        ("hszhao_pspnet50_voc", "mmseg", dict, "These names fit --from hszhao"),
        ("torchvision_resnet50", "torchvision", drop("layer1.0.conv1.weight"), "lacks backbone.layer1.0.conv1.weight"),
        ("torchvision_resnet50", "torchvision", put("layer3.6.conv1.weight", 256, 1024, 1, 1),
         "has 3, 4, 7, 3 bottlenecks in its stages; expected the blocks of a ResNet-18, 34, 50, 101 or 152"),
        ("torchvision_resnet50", "torchvision", put("conv1.weight", 64, 3, 3, 3),
         r"starts with \(3, 3\) convolutions of 64 channels; expected one of 7x7, or three of 3x3 with 64-64-128"),
        ("torchvision_resnet50", "torchvision", put("module.conv1.weight", 64, 3, 7, 7), "contains two networks"),
    ],
)  # fmt: skip
def test_another_network_is_refused(name: str, project: str, change: Change, message: str) -> None:
    tensors = random_tensors(name)
    change(tensors)
    with pytest.raises(UserError, match=message):
        imported(tensors, project)


def test_older_files_without_batch_counts_are_complete() -> None:
    tensors = random_tensors("torchvision_resnet50")
    older = {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    weights = imported(older, "torchvision")
    assert (weights.coverage.share, weights.width) == (1, 1)


def test_a_network_saved_without_its_auxiliary_head_is_complete() -> None:
    tensors = random_tensors("hszhao_pspnet50_voc")
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("module.aux.")}
    weights = imported(tensors, "hszhao")
    assert (weights.coverage.share, weights.width) == (1, 1)
    assert [part.name for part in weights.coverage.parts] == ["backbone", "pyramid", "head"]


def test_a_different_number_of_classes_drops_only_the_last_convolution() -> None:
    weights = imported(random_tensors("hszhao_pspnet50_voc", narrow=NARROW), "hszhao")
    full, other = (weights.network(classes, 3, 8, None).state_dict() for classes in (21, 5))
    assert [name for name in full if not torch.equal(full[name], other[name])] == ["head.4.weight", "head.4.bias"]
    assert other["head.4.weight"].shape == (5, 512 // NARROW, 1, 1)


def test_mmsegmentations_small_networks_are_refused_but_their_backbones_are_not() -> None:
    """In such a block, mmsegmentation dilates only one of the two convolutions."""
    weights = imported(random_tensors("mmseg_pspnet_r50-d8_cityscapes", narrow=NARROW), "mmseg")
    small = ForeignWeights("mmseg", weights.format, 18, 1 / NARROW, "seven", 19, {}, weights.coverage)
    with pytest.raises(UserError, match="is a ResNet-18 of mmseg, which dilates only the first convolution of a block"):
        small.network(19, 3, 8, None)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_an_image_of_equal_channels_keeps_its_features(channels: int) -> None:
    weight = torch.randn(8, 3, 7, 7)
    gray = torch.randn(1, 1, 20, 20)
    before = torch.nn.functional.conv2d(gray.expand(-1, 3, -1, -1), weight)
    adapted = adapt_first_convolution(weight, channels)
    assert adapted.shape == (8, channels, 7, 7)
    assert torch.allclose(torch.nn.functional.conv2d(gray.expand(-1, channels, -1, -1), adapted), before, atol=1e-4)


def test_colors_keep_their_filters_if_channels_are_added() -> None:
    weight = torch.randn(8, 3, 7, 7)
    assert torch.equal(adapt_first_convolution(weight, 3), weight)
    four = adapt_first_convolution(weight, 4)
    assert torch.equal(four[:, 1:3], weight[:, 1:])
    assert torch.equal(four[:, 0], weight[:, 0] / 2)
    assert torch.equal(four[:, 3], weight[:, 0] / 2)
    gray = torch.randn(8, 1, 7, 7)
    assert torch.equal(adapt_first_convolution(gray, 3), gray.repeat(1, 3, 1, 1) / 3)


def test_normalization_has_one_number_per_channel() -> None:
    assert adapt_preprocessing(3).mean == (0.485, 0.456, 0.406)
    assert adapt_preprocessing(1).mean == pytest.approx((0.449,))
    assert adapt_preprocessing(4).std == (0.229, 0.224, 0.225, 0.229)
    images = torch.randint(256, (2, 4, 5, 5), dtype=torch.uint8)
    assert adapt_preprocessing(4)(images).shape == images.shape


@pytest.mark.parametrize("channels", [1, 4])
def test_an_imported_network_gets_the_requested_number_of_channels(channels: int) -> None:
    weights = imported(random_tensors("hszhao_pspnet50_voc", narrow=NARROW), "hszhao")
    images = torch.randn(1, 1, 33, 33)
    with torch.no_grad():
        expected = weights.network(21, 3, 8, None).eval()(images.expand(-1, 3, -1, -1))
        assert torch.allclose(
            weights.network(21, channels, 8, None).eval()(images.expand(-1, channels, -1, -1)), expected, atol=1e-3
        )
    assert weights.backbone(channels).image_channels == channels


def small() -> dict[str, Tensor]:
    return {"a": torch.ones(2), "b": torch.zeros(3)}


@pytest.mark.parametrize(
    "content",
    [
        small(),
        {"state_dict": small(), "epoch": 3, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
        {"student": {"a": torch.zeros(9)}, "teacher": small(), "args": argparse.Namespace(arch="resnet50")},
        {"meta": {"env": "x"}, "state_dict": small()},
    ],
    ids=["plain", "with its optimizer", "teacher before student", "with meta"],
)
def test_tensors_are_found_where_training_puts_them(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "file.pth")
    found = read_checkpoint(tmp_path / "file.pth").tensors
    assert {name: tensor.tolist() for name, tensor in found.items()} == {"a": [1, 1], "b": [0, 0, 0]}


def test_safetensors_are_read_too(tmp_path: Path) -> None:
    save_file(small(), tmp_path / "file.safetensors")
    assert read_checkpoint(tmp_path / "file.safetensors").tensors.keys() == {"a", "b"}


@pytest.mark.parametrize(
    "meta",
    [
        {"CLASSES": ["road", "sky"], "PALETTE": [[1, 2, 3], [4, 5, 6]]},
        {"dataset_meta": {"classes": ("road", "sky"), "palette": [[1, 2, 3], [4, 5, 6]]}},
    ],
    ids=["version 0", "version 1"],
)
def test_mmsegmentation_names_its_classes(meta: Any, tmp_path: Path) -> None:
    torch.save({"meta": meta, "state_dict": small()}, tmp_path / "file.pth")
    found = read_checkpoint(tmp_path / "file.pth")
    assert (found.classes, found.colors) == (("road", "sky"), ((1, 2, 3), (4, 5, 6)))


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": small(), "trap": Trap(tmp_path / "sprung")}, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"contains more than tensors .*A pickle can run code"):
        read_checkpoint(tmp_path / "file.pth")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"no archive", "contains more than tensors|cannot be read"),
        (pickle.dumps([1, 2], protocol=2), "contains more than tensors|cannot be read"),
    ],
)
def test_a_file_that_contains_no_tensors_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "file.pth").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_checkpoint(tmp_path / "file.pth")
    with pytest.raises(UserError, match="cannot be read"):
        read_checkpoint(tmp_path / "none.pth")


def test_the_message_about_a_file_without_tensors_says_what_it_contains(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"has no tensors \(epoch, lr\)"):
        read_checkpoint(tmp_path / "file.pth")
