"""A second PSPNet, as simple as possible, written only from section 1 of the reference. It imports none of our code.

It is a function of named tensors. `Names` lists the tensor names that a project uses, so the same few lines implement
the authors' network, mmsegmentation's and ours.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, cat, nn
from torch.nn import functional as F

BLOCKS = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3]}
BINS = [1, 2, 3, 6]

Pair = tuple[str, str]  # the names of a convolution and its BatchNorm


@dataclass(frozen=True)
class Names:
    stem: Callable[[int], Pair]
    stages: str  # the prefix of layer1.0.conv1
    bin: Callable[[int], Pair]
    bottleneck: Pair
    classifier: str
    auxiliary: Pair
    auxiliary_classifier: str


OURS = Names(
    stem=lambda i: (f"network.backbone.conv{i + 1}", f"network.backbone.bn{i + 1}"),
    stages="network.backbone.",
    bin=lambda i: (f"network.pyramid.branches.{i}.1", f"network.pyramid.branches.{i}.2"),
    bottleneck=("network.head.0", "network.head.1"),
    classifier="network.head.4",
    auxiliary=("auxiliary_head.0", "auxiliary_head.1"),
    auxiliary_classifier="auxiliary_head.4",
)
HSZHAO = Names(
    stem=lambda i: (f"module.layer0.{3 * i}", f"module.layer0.{3 * i + 1}"),
    stages="module.",
    bin=lambda i: (f"module.ppm.features.{i}.1", f"module.ppm.features.{i}.2"),
    bottleneck=("module.cls.0", "module.cls.1"),
    classifier="module.cls.4",
    auxiliary=("module.aux.0", "module.aux.1"),
    auxiliary_classifier="module.aux.4",
)
MMSEG = Names(
    stem=lambda i: (f"backbone.stem.{3 * i}", f"backbone.stem.{3 * i + 1}"),
    stages="backbone.",
    bin=lambda i: (f"decode_head.psp_modules.{i}.1.conv", f"decode_head.psp_modules.{i}.1.bn"),
    bottleneck=("decode_head.bottleneck.conv", "decode_head.bottleneck.bn"),
    classifier="decode_head.conv_seg",
    auxiliary=("auxiliary_head.convs.0.conv", "auxiliary_head.convs.0.bn"),
    auxiliary_classifier="auxiliary_head.conv_seg",
)


@dataclass(frozen=True)
class Mode:
    depth: int
    contract: bool  # the first block of a dilated stage keeps the previous stage's dilation
    align_corners: bool
    output_stride: int = 8


class Oracle:
    """A network without dropout. In training, BatchNorm uses the batch's statistics and updates its
    running statistics.
    """

    def __init__(self, tensors: Mapping[str, Tensor], names: Names, mode: Mode, training: bool = False) -> None:
        self.tensors, self.names, self.mode, self.training = tensors, names, mode, training

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the main and auxiliary logits at the size of the images."""
        c4, c5 = self.backbone(images)[-2:]
        size = c5.shape[-2:]
        pooled = [c5]
        for number, bins in enumerate(BINS):
            own = self.conv_bn_relu(nn.AdaptiveAvgPool2d(bins)(c5), self.names.bin(number))
            pooled.append(F.interpolate(own, size, mode="bilinear", align_corners=self.mode.align_corners))
        main = self.conv(self.conv_bn_relu(cat(pooled, 1), self.names.bottleneck, padding=1), self.names.classifier)
        middle = self.conv_bn_relu(c4, self.names.auxiliary, padding=1)
        auxiliary = self.conv(middle, self.names.auxiliary_classifier)
        return self.upsample(main, images), self.upsample(auxiliary, images)

    def backbone(self, images: Tensor) -> list[Tensor]:
        """Return the features C2 to C5."""
        x, number = images, 0
        while f"{self.names.stem(number)[0]}.weight" in self.tensors:
            kernel = self.tensors[f"{self.names.stem(number)[0]}.weight"].shape[-1]
            x = self.conv_bn_relu(x, self.names.stem(number), stride=2 if number == 0 else 1, padding=kernel // 2)
            number += 1
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        strides = {8: [1, 2, 1, 1], 16: [1, 2, 2, 1], 32: [1, 2, 2, 2]}[self.mode.output_stride]
        dilations = {8: [1, 1, 2, 4], 16: [1, 1, 1, 2], 32: [1, 1, 1, 1]}[self.mode.output_stride]
        features, before = [], 1
        for stage in range(4):
            for block in range(BLOCKS[self.mode.depth][stage]):
                first = block == 0
                dilation = before if first and self.mode.contract else dilations[stage]
                name = f"{self.names.stages}layer{stage + 1}.{block}."
                x = self.block(x, name, strides[stage] if first else 1, dilation)
            before = dilations[stage]
            features.append(x)
        return features

    def block(self, x: Tensor, name: str, stride: int, dilation: int) -> Tensor:
        shortcut = x
        if f"{name}downsample.0.weight" in self.tensors:
            shortcut = self.norm(self.conv(x, f"{name}downsample.0", stride=stride), f"{name}downsample.1")
        wide = {"padding": dilation, "dilation": dilation}
        if self.mode.depth >= 50:
            x = self.conv_bn_relu(x, (f"{name}conv1", f"{name}bn1"))
            x = self.conv_bn_relu(x, (f"{name}conv2", f"{name}bn2"), stride=stride, **wide)
            x = self.norm(self.conv(x, f"{name}conv3"), f"{name}bn3")
        else:
            x = self.conv_bn_relu(x, (f"{name}conv1", f"{name}bn1"), stride=stride, **wide)
            x = self.norm(self.conv(x, f"{name}conv2", **wide), f"{name}bn2")
        return F.relu(x + shortcut)

    def conv_bn_relu(self, x: Tensor, names: Pair, stride: int = 1, padding: int = 0, dilation: int = 1) -> Tensor:
        return F.relu(self.norm(self.conv(x, names[0], stride, padding, dilation), names[1]))

    def conv(self, x: Tensor, name: str, stride: int = 1, padding: int = 0, dilation: int = 1) -> Tensor:
        bias = self.tensors.get(f"{name}.bias")
        return F.conv2d(x, self.tensors[f"{name}.weight"], bias, stride, padding, dilation)

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean, variance, weight, bias = (
            self.tensors[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, variance, weight, bias, self.training, 0.1, 1e-5)

    def upsample(self, logits: Tensor, images: Tensor) -> Tensor:
        return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=self.mode.align_corners)
