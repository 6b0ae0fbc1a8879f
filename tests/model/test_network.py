import pytest
import torch
from torch import nn

from pspnet.model.backbone.pyramid import AverageBins, PyramidPooling
from pspnet.model.backbone.resnet import Depth, OutputStride, ResNet
from pspnet.model.network import Architecture, PSPNet, SupervisedPSPNet


def network(depth: Depth = 18, width: float = 0.125, output_stride: OutputStride = 8, classes: int = 5) -> PSPNet:
    torch.manual_seed(0)
    return PSPNet(Architecture(depth, width, output_stride, classes, dropout=0.1))


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("depth", "classes", "inference", "supervised"),
    [
        (50, 21, 46_592_597, 48_957_802),
        (50, 19, 46_591_571, 48_956_262),
        (101, 21, 65_584_725, 67_949_930),
        (101, 150, 65_584_725 + 129 * 513, 67_949_930 + 129 * (513 + 257)),
        (152, 21, 81_228_373, 81_228_373 + 2_359_808 + 257 * 21),
    ],
)
def test_parameter_counts_are_the_published_ones(depth: Depth, classes: int, inference: int, supervised: int) -> None:
    with torch.device("meta"):
        network = PSPNet(Architecture(depth, 1.0, 8, classes, dropout=0.1))
        assert parameters(network) == inference
        assert parameters(SupervisedPSPNet(network)) == supervised


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_the_backbone_keeps_the_resolution_it_promises(depth: Depth, output_stride: OutputStride) -> None:
    with torch.device("meta"):
        features = ResNet(depth, 0.25, output_stride)(torch.empty(1, 3, 64, 96))
    assert [tuple(f.shape[-2:]) for f in features] == [
        (64 // stride, 96 // stride) for stride in (4, 8, min(16, output_stride), output_stride)
    ]


@pytest.mark.parametrize("depth", [18, 50])
def test_every_3x3_convolution_of_the_last_stages_is_dilated(depth: Depth) -> None:
    def dilations(stage: nn.Module) -> set[tuple[int, ...]]:
        return {m.dilation for m in stage.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)}

    backbone = ResNet(depth, 0.125, 8)
    assert [dilations(stage) for (stage,) in backbone.layers()[1:]] == [{(1, 1)}, {(1, 1)}, {(2, 2)}, {(4, 4)}]


def test_dilation_changes_no_weight_and_nothing_before_it() -> None:
    torch.manual_seed(1)
    coarse, dense = ResNet(18, 0.25, 32).eval(), ResNet(18, 0.25, 8).eval()
    dense.load_state_dict(coarse.state_dict())
    images = torch.randn(1, 3, 128, 128)
    for left, right in zip(coarse(images)[:2], dense(images)[:2], strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("size", [(64, 64), (57, 33), (1, 40), (97, 200)])
def test_logits_have_the_size_of_the_image(size: tuple[int, int]) -> None:
    assert network().eval()(torch.randn(1, 3, *size)).shape == (1, 5, *size)


def test_the_auxiliary_head_does_not_change_the_main_logits() -> None:
    main = network().eval()
    images = torch.randn(2, 3, 64, 64)
    logits, auxiliary = SupervisedPSPNet(main).eval()(images)
    enlarged = nn.functional.interpolate(logits, (64, 64), mode="bilinear", align_corners=False)
    assert torch.equal(enlarged, main(images))
    assert auxiliary.shape == logits.shape == (2, 5, 8, 8)


def test_the_pyramid_puts_the_features_first_and_the_whole_image_next() -> None:
    pyramid = PyramidPooling(8).eval()
    features = torch.randn(1, 8, 12, 12)
    pooled = pyramid(features)
    assert pooled.shape == (1, 16, 12, 12)
    assert torch.equal(pooled[:, :8], features)
    whole_image = pooled[:, 8:10]
    assert torch.allclose(whole_image, whole_image[..., :1, :1])


@pytest.mark.parametrize("size", [(12, 16), (7, 5), (1, 1), (6, 60), (13, 3)])
@pytest.mark.parametrize("bins", [1, 2, 3, 6])
def test_average_bins_equal_adaptive_pooling(size: tuple[int, int], bins: int) -> None:
    features = torch.randn(2, 4, *size)
    expected = nn.functional.adaptive_avg_pool2d(features, bins)
    assert torch.allclose(AverageBins(bins)(features), expected, atol=1e-6)


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
def test_means_of_many_features_in_half_precision_are_rounded_once(bins: int) -> None:
    features = torch.rand(2, 4, 61, 67).bfloat16()
    expected = nn.functional.adaptive_avg_pool2d(features.double(), bins)
    assert torch.allclose(AverageBins(bins)(features).double(), expected, rtol=2**-8, atol=0)


def test_gradients_reach_every_parameter() -> None:
    supervised = SupervisedPSPNet(network())
    main, auxiliary = supervised(torch.randn(2, 3, 64, 64))
    (main.square().mean() + auxiliary.square().mean()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in supervised.parameters())
