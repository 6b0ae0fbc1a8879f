"""Our network is the published network: a second implementation, torchvision and published parameter counts agree with
it.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from pspnet.losses.segmentation import build_loss, supervised_loss
from pspnet.model.backbone.normalization import BatchNorm
from pspnet.model.backbone.resnet import Depth, Dilation, OutputStride, ResNet, Stem
from pspnet.model.network import Architecture, PSPNet, SupervisedPSPNet
from tests.oracles.pspnet import OURS, Mode, Oracle
from tests.parameters import demo_params

STEMS: tuple[Stem, ...] = get_args(Stem)
DILATIONS: tuple[Dilation, ...] = get_args(Dilation)
PLAIN = Architecture(depth=50, width=0.125, output_stride=8, classes=5, dropout=0.0)


def supervised(architecture: Architecture) -> SupervisedPSPNet:
    """Create a network whose BatchNorm has realistic statistics and factors, as after training. Initial values would
    hide mistakes.
    """
    torch.manual_seed(0)
    network = SupervisedPSPNet(PSPNet(architecture))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
            module.get_buffer("running_mean").normal_(0, 0.1)
            module.get_buffer("running_var").uniform_(0.8, 1.5)
    return network


def oracle(network: SupervisedPSPNet, tensors: dict[str, Tensor], training: bool = False) -> Oracle:
    own = network.network.architecture
    mode = Mode(own.depth, own.dilation == "contract", own.align_corners, own.output_stride)
    return Oracle(tensors, OURS, mode, training)


def logits(network: SupervisedPSPNet, images: Tensor) -> Iterator[Tensor]:
    """Yield the main and auxiliary logits at the images' size."""
    for coarse in network(images):
        align_corners = network.network.architecture.align_corners
        yield nn.functional.interpolate(coarse, images.shape[-2:], mode="bilinear", align_corners=align_corners)


def agree(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5 * max(1.0, float(theirs.detach().abs().max()))


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("dilation", DILATIONS)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("depth", [18, 50])
def test_logits_equal_those_of_the_second_network(
    stem: Stem, dilation: Dilation, align_corners: bool, depth: Depth
) -> None:
    ours = supervised(replace(PLAIN, depth=depth, stem=stem, dilation=dilation, align_corners=align_corners)).eval()
    theirs = oracle(ours, dict(ours.state_dict()))
    for size in ((65, 73), (64, 48), (50, 91)):
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            for own, other in zip(logits(ours, images), theirs(images), strict=True):
                assert other.std() > 0.01
                agree(own, other)
            agree(ours.network(images), theirs(images)[0])


@pytest.mark.parametrize("depth", [34, 101, 152])
def test_deeper_networks_agree_too(depth: Depth) -> None:
    ours = supervised(replace(PLAIN, depth=depth, stem="deep", dilation="contract", align_corners=True)).eval()
    images = torch.randn(1, 3, 65, 65)
    with torch.no_grad():
        agree(ours.network(images), oracle(ours, dict(ours.state_dict()))(images)[0])


@pytest.mark.parametrize("output_stride", [16, 32])
@pytest.mark.parametrize("dilation", DILATIONS)
def test_networks_with_coarser_strides_agree_too(output_stride: OutputStride, dilation: Dilation) -> None:
    ours = supervised(replace(PLAIN, output_stride=output_stride, dilation=dilation)).eval()
    images = torch.randn(1, 3, 97, 65)
    with torch.no_grad():
        agree(ours.network(images), oracle(ours, dict(ours.state_dict()))(images)[0])


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("dilation", DILATIONS)
@pytest.mark.parametrize("align_corners", [False, True])
def test_a_training_step_sees_the_same_loss_and_gradients(stem: Stem, dilation: Dilation, align_corners: bool) -> None:
    """The test uses double precision, so that the order of sums does not matter."""
    ours = supervised(replace(PLAIN, stem=stem, dilation=dilation, align_corners=align_corners)).double().train()
    tensors = {name: tensor.detach().clone() for name, tensor in ours.state_dict().items()}
    learned = {name: tensors[name].requires_grad_() for name, _ in ours.named_parameters()}
    images, masks = torch.randn(2, 3, 65, 65, dtype=torch.float64), torch.randint(5, (2, 65, 65), dtype=torch.uint8)
    params = demo_params().finetune.loss
    loss = build_loss(params, tuple("abcde"), [1] * 5, 255, align_corners, torch.device("cpu"))
    main, auxiliary = (loss(one, masks) for one in ours(images))
    own = supervised_loss(main, auxiliary, auxiliary_weight=0.4)
    theirs = oracle(ours, tensors, training=True)(images)
    main, auxiliary = (nn.functional.cross_entropy(one, masks.long()) for one in theirs)
    other = main + 0.4 * auxiliary
    agree(own, other)
    own.backward()  # type: ignore[no-untyped-call]
    other.backward()  # type: ignore[no-untyped-call]
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        gradient = learned[name].grad
        assert gradient is not None
        agree(parameter.grad, gradient)
    for name, buffer in ours.named_buffers():
        if not name.endswith("num_batches_tracked"):
            agree(buffer, tensors[name])


@pytest.mark.parametrize(
    ("stem", "classes", "inference", "with_auxiliary"),
    [
        ("seven", 21, 46_592_597, 48_957_802),
        ("seven", 19, 46_591_571, 48_956_262),
        ("deep", 21, 46_716_373, 49_081_578),
        ("deep", 19, 46_715_347, 49_080_038),
        ("deep_narrow", 21, 46_611_829, 48_977_034),
        ("deep_narrow", 19, 46_610_803, 48_975_494),
    ],
)
def test_parameter_counts_of_every_stem_are_the_published_ones(
    stem: Stem, classes: int, inference: int, with_auxiliary: int
) -> None:
    with torch.device("meta"):
        network = PSPNet(Architecture(50, 1.0, 8, classes, dropout=0.1, stem=stem))
        assert count(network) == inference
        assert count(SupervisedPSPNet(network)) == with_auxiliary


@pytest.mark.parametrize(("depth", "parameters"), [(101, 65_708_501), (152, 81_352_149)])
def test_parameter_counts_of_deeper_networks_with_the_deep_stem(depth: Depth, parameters: int) -> None:
    with torch.device("meta"):
        assert count(PSPNet(Architecture(depth, 1.0, 8, 21, dropout=0.1, stem="deep"))) == parameters


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("depth", [50, 101])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_features_with_contract_equal_those_of_torchvision(depth: Depth, output_stride: OutputStride) -> None:
    """Only for bottleneck blocks, because torchvision cannot dilate the blocks of ResNet-18 and 34."""
    from torchvision import models

    replaced = [False, output_stride == 8, True]
    torch.manual_seed(0)
    theirs = models.get_model(f"resnet{depth}", weights=None, replace_stride_with_dilation=replaced).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.8, 1.5)  # type: ignore[union-attr]
            nn.init.uniform_(module.weight, 0.3, 0.6)
    ours = ResNet(depth, 1.0, output_stride, dilation="contract").eval()
    own = {name: tensor for name, tensor in theirs.state_dict().items() if not name.startswith("fc.")}
    ours.load_state_dict(own, strict=True)
    images = torch.randn(1, 3, 65, 81)
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
        for stage, feature in zip(
            (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4), ours(images), strict=True
        ):
            x = stage(x)
            assert torch.equal(x, feature)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 200), (7, 7), (33, 57)])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("decoder", ["plain", "low_level"])
def test_images_of_any_size_train_even_in_batches_of_one(
    size: tuple[int, int], align_corners: bool, decoder: str
) -> None:
    architecture = replace(PLAIN, depth=18, align_corners=align_corners, decoder=decoder)  # type: ignore[arg-type]
    ours = supervised(architecture).train()
    for batch in (1, 2):
        main, auxiliary = logits(ours, torch.randn(batch, 3, *size))
        assert main.shape == auxiliary.shape == (batch, 5, *size)
        assert main.isfinite().all()
        (main.square().mean() + auxiliary.square().mean()).backward()  # type: ignore[no-untyped-call]


def test_a_single_value_is_normalized_by_the_running_statistics_and_leaves_them_unchanged() -> None:
    norm = BatchNorm(4)
    norm.get_buffer("running_mean").uniform_()
    norm.get_buffer("running_var").uniform_(1, 2)
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    one = torch.randn(1, 4, 1, 1)
    expected = nn.BatchNorm2d(4)
    expected.load_state_dict(norm.state_dict())
    assert torch.equal(norm.train()(one), expected.eval()(one))
    assert all(torch.equal(tensor, before[name]) for name, tensor in norm.state_dict().items())
    two = torch.randn(2, 4, 1, 1)
    assert torch.equal(norm(two), expected.train()(two))
    assert torch.equal(norm.get_buffer("running_mean"), expected.get_buffer("running_mean"))


def test_learned_pyramid_weights_start_as_the_published_network_and_scale_their_branch() -> None:
    plain = supervised(PLAIN).network.eval()
    learned = PSPNet(replace(PLAIN, pyramid_weights="learned")).eval()
    missing = learned.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing == ["pyramid.weights"]
    assert count(learned) == count(plain) + 4
    images = torch.randn(1, 3, 65, 65)
    with torch.no_grad():
        assert torch.equal(learned(images), plain(images))
        *_, c5 = learned.backbone(images)
        before = learned.pyramid(c5)
        assert learned.pyramid.weights is not None
        learned.pyramid.weights[2] = 3.0
        after = learned.pyramid(c5)
    channels, each = c5.shape[1], c5.shape[1] // 4
    third = slice(channels + 2 * each, channels + 3 * each)
    assert torch.allclose(after[:, third], 3 * before[:, third])
    others = [channel for channel in range(2 * channels) if not third.start <= channel < third.stop]
    assert torch.equal(after[:, others], before[:, others])


def test_the_low_level_decoder_sees_what_the_pyramid_does_not() -> None:
    network = supervised(replace(PLAIN, decoder="low_level")).network.eval()
    c2, c3, c4, c5 = network.backbone(torch.randn(1, 3, 64, 64))
    with torch.no_grad():
        logits = network.coarse_logits((c2, c3, c4, c5))
        assert logits.shape[-2:] == c2.shape[-2:]
        assert not torch.equal(network.coarse_logits((c2 + 1, c3, c4, c5)), logits)
        assert not torch.equal(network.coarse_logits((c2, c3, c4, c5 + 1)), logits)


@pytest.mark.parametrize("channels", [1, 4, 7])
def test_images_can_have_any_number_of_channels(channels: int) -> None:
    network = PSPNet(replace(PLAIN, image_channels=channels)).eval()
    assert network(torch.randn(1, channels, 40, 40)).shape == (1, 5, 40, 40)
