"""Turns tensors with another project's names into our backbone, or into a whole network with the same output."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pspnet.checkout.foreign.checkpoints import Checkpoint
from pspnet.checkout.foreign.formats import FORMATS, WRAPPERS, Format
from pspnet.errors import Problem, UserError
from pspnet.model.backbone.preprocessing import IMAGENET, Preprocessing
from pspnet.model.backbone.resnet import BLOCKS, STEMS, Depth, OutputStride, ResNet, Stem
from pspnet.model.network import Architecture, PSPNet, SupervisedPSPNet

MOST_SHOWN = 5
FIRST = "backbone.conv1.weight"
CLASSIFIERS = ("head.4.", "auxiliary_head.4.")
COUNT = "num_batches_tracked"  # a BatchNorm tensor that we do not use and that older files do not contain


@dataclass(frozen=True)
class Part:
    name: str
    found: int
    wanted: int


@dataclass(frozen=True)
class Coverage:
    """How much of our network a file covers, and which of the file's tensors have no counterpart in our network."""

    parts: tuple[Part, ...]
    missing: tuple[str, ...]
    misshapen: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def share(self) -> float:
        """The share of tensors that match. Unknown tensors count as missing, because the other network may use them."""
        wanted = sum(part.wanted for part in self.parts) + len(self.unknown)
        return sum(part.found for part in self.parts) / wanted

    def faults(self) -> Iterator[str]:
        for kind, names in (
            ("missing", self.missing),
            ("of a different shape", self.misshapen),
            ("unknown", self.unknown),
        ):
            if names:
                shown = ", ".join(names[:MOST_SHOWN])
                more = f" and {len(names) - MOST_SHOWN} more" if names[MOST_SHOWN:] else ""
                yield f"{len(names)} {kind}: {shown}{more}"


@dataclass(frozen=True)
class ForeignWeights:
    project: str
    format: Format
    depth: Depth
    width: float
    stem: Stem
    classes: int  # number of classes of a whole network; 0 for a backbone
    tensors: Mapping[str, Tensor]  # by our names
    coverage: Coverage

    @property
    def is_whole(self) -> bool:
        return self.format.whole is not None

    def backbone(self, channels: int) -> ResNet:
        torch.manual_seed(0)  # for tensors that the file does not fill
        backbone = ResNet(self.depth, self.width, 32, self.stem, image_channels=channels)
        _fill(backbone, self._adapted(channels), "backbone.")
        return backbone

    def network(self, classes: int, channels: int, output_stride: OutputStride, align_corners: bool | None) -> PSPNet:
        """The whole network. It computes what it does in the other project, unless `align_corners` is given.

        If `classes` differs from the number of classes in the file, the classifier is new.
        """
        whole = self.format.whole
        assert whole is not None
        if self.depth < 50 and output_stride < 32 and not whole.dilates_basic_blocks:
            found = f"is a ResNet-{self.depth} of {self.project}, which dilates only the first convolution of a block"
            fix = "Import only its backbone, without --bundle, or use ResNet-50, 101 or 152."
            raise UserError(Problem("the network", found, "blocks that dilate both convolutions, as ours do", fix))
        torch.manual_seed(0)  # for tensors that the file does not fill
        network = PSPNet(
            Architecture(
                depth=self.depth,
                width=self.width,
                output_stride=output_stride,
                classes=classes,
                dropout=0.1,
                stem=self.stem,
                dilation=whole.dilation,
                align_corners=whole.align_corners if align_corners is None else align_corners,
                image_channels=channels,
            )
        )
        tensors = self._adapted(channels)
        if classes != self.classes:
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(CLASSIFIERS)}
        _fill(network, tensors, "")
        return network

    def _adapted(self, channels: int) -> dict[str, Tensor]:
        adapted = {FIRST: adapt_first_convolution(self.tensors[FIRST], channels)} if FIRST in self.tensors else {}
        return {**self.tensors, **adapted}


def import_weights(checkpoint: Checkpoint, project: str, where: str) -> ForeignWeights:
    """The tensors by our names. Their shapes determine the network; `coverage` tells how much of it is present."""
    plain = {re.sub(f"^{WRAPPERS}", "", name): tensor for name, tensor in checkpoint.tensors.items()}
    if len(plain) < len(checkpoint.tensors):
        found = "contains two networks whose tensor names differ only in wrappers (module. and the like)"
        raise UserError(Problem(where, found, "one network"))
    own = _format(plain, project, where)
    if own.refused and any(re.fullmatch(own.refused.recognized_by, name) for name in plain):
        raise UserError(Problem(where, f"computes a different function: {own.refused.because}", "a plain ResNet"))
    tensors, unknown = _translate(plain, own)
    depth, width, stem = _shape(tensors, where)
    classes = tensors["head.4.weight"].shape[0] if own.whole else 0
    with torch.device("meta"):
        wanted = _wanted(depth, width, stem, classes, tensors, own)
    kept, coverage = _compare(tensors, wanted, unknown)
    return ForeignWeights(project, own, depth, width, stem, classes, kept, coverage)


def adapt_first_convolution(weight: Tensor, channels: int) -> Tensor:
    """(K, M, h, w) -> (K, channels, h, w), such that an image whose channels are all equal gives the same output.

    With fewer than M channels, each channel gets an equal part of the sum of the filters, so that a gray image reaches
    all of them. With more than M channels, the M filters are reused in turn, and channels with the same filter share it
    equally.
    """
    own = weight.shape[1]
    if channels < own:
        return weight.sum(dim=1, keepdim=True).repeat(1, channels, 1, 1) / channels
    turns = torch.arange(channels) % own
    repeats = torch.bincount(turns, minlength=own).clamp(min=1)[turns].view(1, -1, 1, 1)
    return weight[:, turns] / repeats


def adapt_preprocessing(channels: int) -> Preprocessing:
    """ImageNet's preprocessing for this number of channels, distributed as `adapt_first_convolution` does filters."""
    mean, std = (
        (sum(values) / len(values),) if channels < len(values) else values for values in (IMAGENET.mean, IMAGENET.std)
    )
    return Preprocessing(*(tuple(values[i % len(values)] for i in range(channels)) for values in (mean, std)))


def _format(names: Mapping[str, Tensor], project: str, where: str) -> Format:
    for one in FORMATS[project]:
        if any(re.fullmatch(one.recognized_by, name) for name in names):
            return one
    expected = " or ".join(one.recognized_by.replace("\\", "") for one in FORMATS[project])
    shown = ", ".join(list(names)[:MOST_SHOWN])
    others = [
        name
        for name, formats in FORMATS.items()
        if any(re.fullmatch(one.recognized_by, found) for one in formats for found in names)
    ]
    fix = f"These names fit --from {', '.join(others)}." if others else ""
    found = f"has no tensor names in {project} format (found {shown}, ...)"
    raise UserError(Problem(where, found, f"a name such as {expected}", fix))


def _translate(names: Mapping[str, Tensor], own: Format) -> tuple[dict[str, Tensor], list[str]]:
    tensors: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in names.items():
        rule = next(((pattern, ours) for pattern, ours in own.ours.items() if re.fullmatch(pattern, name)), None)
        if rule is not None:
            tensors[re.sub(rule[0], rule[1], name)] = tensor
        elif not any(re.fullmatch(pattern, name) for pattern in own.unused):
            unknown.append(name)
    return tensors, unknown


def _shape(tensors: Mapping[str, Tensor], where: str) -> tuple[Depth, float, Stem]:
    """Depth, width and stem of the ResNet. They are read from the shapes so that the user cannot get them wrong."""
    first = "backbone.layer1.0.conv1.weight"
    if missing := [name for name in (FIRST, first) if name not in tensors]:
        raise UserError(Problem(where, f"lacks {missing[0]}", "a ResNet's tensors"))
    base = tensors[first].shape[0]
    numbers = [re.match(r"backbone\.layer([1-4])\.(\d+)\.", name) for name in tensors]
    pairs = {(int(number[1]), int(number[2])) for number in numbers if number}
    blocks = tuple(sum(stage == own for own, _ in pairs) for stage in range(1, 5))
    is_bottleneck = "backbone.layer1.0.conv3.weight" in tensors
    depth = next((d for d, own in BLOCKS.items() if own == blocks and (d >= 50) == is_bottleneck), None)
    if depth is None:
        found = f"has {', '.join(map(str, blocks))} {'bottlenecks' if is_bottleneck else 'basic blocks'} in its stages"
        raise UserError(Problem(where, found, "the blocks of a ResNet-18, 34, 50, 101 or 152"))
    width = base / 64
    if tensors[FIRST].shape[-1] == 7:
        return depth, width, "seven"  # type: ignore[return-value]
    outputs = tuple(
        tensors[name].shape[0] for name in (f"backbone.conv{i}.weight" for i in (1, 2, 3)) if name in tensors
    )
    stems: dict[tuple[int, ...], Stem] = {
        tuple(round(own * width) for own in STEMS["deep"]): "deep",
        tuple(round(own * width) for own in STEMS["deep_narrow"]): "deep_narrow",
    }
    if outputs not in stems:
        known = " or ".join("-".join(map(str, own)) for own in stems)
        found = f"starts with {tuple(tensors[FIRST].shape[-2:])} convolutions of {'-'.join(map(str, outputs))} channels"
        raise UserError(Problem(where, found, f"one of 7x7, or three of 3x3 with {known}"))
    return depth, width, stems[outputs]  # type: ignore[return-value]


def _wanted(
    depth: Depth, width: float, stem: Stem, classes: int, tensors: Mapping[str, Tensor], own: Format
) -> dict[str, torch.Size]:
    channels = tensors[FIRST].shape[1]
    if own.whole is None:
        backbone = ResNet(depth, width, 32, stem, image_channels=channels)
        return {f"backbone.{name}": tensor.shape for name, tensor in backbone.state_dict().items()}
    whole = SupervisedPSPNet(PSPNet(Architecture(depth, width, 8, classes, 0.1, stem, image_channels=channels)))
    has_auxiliary = any(name.startswith("auxiliary_head.") for name in tensors)
    shapes = {name.removeprefix("network."): tensor.shape for name, tensor in whole.state_dict().items()}
    return {name: shape for name, shape in shapes.items() if has_auxiliary or not name.startswith("auxiliary_head.")}


def _compare(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, torch.Size], unknown: list[str]
) -> tuple[dict[str, Tensor], Coverage]:
    kept = {name: tensor for name, tensor in tensors.items() if wanted.get(name) == tensor.shape}
    counted = [name for name in wanted if not name.endswith(COUNT)]
    parts = [
        Part(part, sum(name in kept for name in names), len(names))
        for part in ("backbone", "pyramid", "head", "auxiliary_head")
        if (names := [name for name in counted if name.startswith(f"{part}.")])
    ]
    misshapen = [
        f"{name} is {tuple(tensors[name].shape)} and should be {tuple(wanted[name])}"
        for name in counted
        if name in tensors and name not in kept
    ]
    missing = [name for name in counted if name not in tensors]
    homeless = [name for name in tensors if name not in wanted]
    return kept, Coverage(tuple(parts), tuple(missing), tuple(misshapen), (*homeless, *unknown))


def _fill(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> None:
    wanted = module.state_dict()
    own = {name: tensors[f"{prefix}{name}"] for name in wanted if f"{prefix}{name}" in tensors}
    module.load_state_dict(wanted | own, strict=True)
