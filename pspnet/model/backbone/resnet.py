"""ResNets that use dilation to keep the resolution of their last stages. Weights are named as in torchvision."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from pspnet.model.backbone.normalization import BatchNorm

Depth = Literal[18, 34, 50, 101, 152]
OutputStride = Literal[8, 16, 32]
Stem = Literal["seven", "deep", "deep_narrow"]
Dilation = Literal["full", "contract"]

BLOCKS: dict[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
# A stage that does not halve the resolution dilates its 3x3 convolutions instead, to keep their field of view.
STRIDES: dict[int, tuple[int, int, int, int]] = {32: (1, 2, 2, 2), 16: (1, 2, 2, 1), 8: (1, 2, 1, 1)}
DILATIONS: dict[int, tuple[int, int, int, int]] = {32: (1, 1, 1, 1), 16: (1, 1, 1, 2), 8: (1, 1, 2, 4)}
# Outputs of the convolutions before the first stage: one 7x7 convolution, or three 3x3 ones. The first convolution
# halves the image.
STEMS: dict[str, tuple[int, ...]] = {"seven": (64,), "deep": (64, 64, 128), "deep_narrow": (32, 32, 64)}

Features = tuple[Tensor, Tensor, Tensor, Tensor]  # C2 .. C5, coarser and wider from left to right


def _conv3x3(inputs: int, outputs: int, stride: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=dilation, dilation=dilation, bias=False)


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int, dilation: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, channels, stride, dilation)
        self.bn1 = BatchNorm(channels)
        self.conv2 = _conv3x3(channels, channels, 1, dilation)
        self.bn2 = BatchNorm(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.relu(x + shortcut)  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int, dilation: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
        self.bn1 = BatchNorm(channels)
        self.conv2 = _conv3x3(channels, channels, stride, dilation)
        self.bn2 = BatchNorm(channels)
        self.conv3 = nn.Conv2d(channels, channels * self.expansion, 1, bias=False)
        self.bn3 = BatchNorm(channels * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return self.relu(x + shortcut)  # type: ignore[no-any-return]


class ResNet(nn.Module):
    def __init__(
        self,
        depth: Depth,
        width: float,
        output_stride: OutputStride,
        stem: Stem = "seven",
        dilation: Dilation = "full",
        image_channels: int = 3,
    ) -> None:
        """With `dilation` contract, the first block of a dilated stage keeps the dilation of the previous stage."""
        super().__init__()
        self.depth, self.width, self.stem, self.image_channels = depth, width, stem, image_channels
        block = BasicBlock if depth < 50 else Bottleneck
        base = round(64 * width)
        self.channels = tuple(base * 2**stage * block.expansion for stage in range(4))  # of C2 .. C5
        inputs = image_channels
        for number, published in enumerate(STEMS[stem], start=1):
            outputs, stride = round(published * width), 2 if number == 1 else 1
            convolution = (
                nn.Conv2d(inputs, outputs, 7, stride, padding=3, bias=False)
                if stem == "seven"
                else _conv3x3(inputs, outputs, stride, dilation=1)
            )
            self.add_module(f"conv{number}", convolution)
            self.add_module(f"bn{number}", BatchNorm(outputs))
            inputs = outputs
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        stages = []
        before = 1
        for stage in range(4):
            channels, own = base * 2**stage, DILATIONS[output_stride][stage]
            stages.append(
                _stage(
                    block,
                    inputs,
                    channels,
                    BLOCKS[depth][stage],
                    STRIDES[output_stride][stage],
                    before if dilation == "contract" else own,
                    own,
                )
            )
            inputs, before = channels * block.expansion, own
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Features:  # (N, image_channels, H, W)
        x = images
        for convolution, norm in self._stem_layers():
            x = self.relu(norm(convolution(x)))
        c2 = self.layer1(self.maxpool(x))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return c2, c3, c4, self.layer4(c4)

    def layers(self) -> list[list[nn.Module]]:
        """The parts of the network, in the order in which they are frozen: the stem, then layer1 to layer4."""
        stem = [module for pair in self._stem_layers() for module in pair]
        return [stem, [self.layer1], [self.layer2], [self.layer3], [self.layer4]]

    def _stem_layers(self) -> list[tuple[nn.Module, nn.Module]]:
        numbers = range(1, len(STEMS[self.stem]) + 1)
        return [(getattr(self, f"conv{number}"), getattr(self, f"bn{number}")) for number in numbers]


Block = type[BasicBlock] | type[Bottleneck]


def _stage(
    block: Block, inputs: int, channels: int, blocks: int, stride: int, first_dilation: int, dilation: int
) -> nn.Sequential:
    outputs = channels * block.expansion
    downsample: nn.Module | None = None
    if stride != 1 or inputs != outputs:
        downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), BatchNorm(outputs))
    build: Callable[..., nn.Module] = block
    first = build(inputs, channels, stride, first_dilation, downsample)
    return nn.Sequential(first, *(build(outputs, channels, 1, dilation, None) for _ in range(blocks - 1)))
