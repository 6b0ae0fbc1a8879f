"""ResNets whose last stages keep their resolution by dilation. Weights are named as in torchvision."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

Depth = Literal[18, 34, 50, 101, 152]
OutputStride = Literal[8, 16, 32]

BLOCKS: dict[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
# Where a stage does not halve the resolution, each of its 3x3 convolutions is dilated to keep its view of the image.
STRIDES: dict[int, tuple[int, int, int, int]] = {32: (1, 2, 2, 2), 16: (1, 2, 2, 1), 8: (1, 2, 1, 1)}
DILATIONS: dict[int, tuple[int, int, int, int]] = {32: (1, 1, 1, 1), 16: (1, 1, 1, 2), 8: (1, 1, 2, 4)}

Features = tuple[Tensor, Tensor, Tensor, Tensor]  # C2 .. C5, coarser and wider from left to right


def _conv3x3(inputs: int, outputs: int, stride: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=dilation, dilation=dilation, bias=False)


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int, dilation: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, channels, stride, dilation)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels, 1, dilation)
        self.bn2 = nn.BatchNorm2d(channels)
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
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels, stride, dilation)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return self.relu(x + shortcut)  # type: ignore[no-any-return]


class ResNet(nn.Module):
    def __init__(self, depth: Depth, width: float, output_stride: OutputStride) -> None:
        super().__init__()
        block = BasicBlock if depth < 50 else Bottleneck
        stem = round(64 * width)
        self.channels = tuple(stem * 2**stage * block.expansion for stage in range(4))  # of C2 .. C5
        self.conv1 = nn.Conv2d(3, stem, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        inputs = stem
        stages = []
        for stage in range(4):
            channels = stem * 2**stage
            stages.append(
                _stage(
                    block,
                    inputs,
                    channels,
                    BLOCKS[depth][stage],
                    STRIDES[output_stride][stage],
                    DILATIONS[output_stride][stage],
                )
            )
            inputs = channels * block.expansion
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Features:  # (N, 3, H, W)
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        c2 = self.layer1(x)
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return c2, c3, c4, self.layer4(c4)

    def layers(self) -> list[list[nn.Module]]:
        """What can be frozen one after the other: the stem, then layer1 to layer4."""
        return [[self.conv1, self.bn1], [self.layer1], [self.layer2], [self.layer3], [self.layer4]]


Block = type[BasicBlock] | type[Bottleneck]


def _stage(block: Block, inputs: int, channels: int, blocks: int, stride: int, dilation: int) -> nn.Sequential:
    outputs = channels * block.expansion
    downsample: nn.Module | None = None
    if stride != 1 or inputs != outputs:
        downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    build: Callable[..., nn.Module] = block
    first = build(inputs, channels, stride, dilation, downsample)
    return nn.Sequential(first, *(build(outputs, channels, 1, dilation, None) for _ in range(blocks - 1)))
