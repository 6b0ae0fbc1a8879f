"""Tables that map other projects' names for the tensors of ResNet and PSPNet to ours, one rule per line.

Patterns are regular expressions that match a whole name without its wrappers. Our names are the names of the tensors in
a bundle, plus `auxiliary_head` for the head that bundles leave out.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pspnet.model.backbone.resnet import Dilation

WRAPPERS = r"(module\.|_orig_mod\.|model\.)*"
CONTAINERS = ("state_dict", "teacher", "student", "model", "model_state_dict")  # may hold the tensors; the first wins


@dataclass(frozen=True)
class WholeNetwork:
    """How a project's network computes, as far as the shapes of its weights do not show it."""

    dilation: Dilation
    align_corners: bool
    dilates_basic_blocks: bool  # dilates both convolutions, as ours does; mmsegmentation dilates only the first


@dataclass(frozen=True)
class Refusal:
    recognized_by: str
    because: str


@dataclass(frozen=True)
class Format:
    recognized_by: str  # a tensor name that occurs only in files of this format
    ours: Mapping[str, str]  # pattern -> our name for matching tensors
    unused: tuple[str, ...] = ()  # known names that are not needed
    whole: WholeNetwork | None = None
    refused: Refusal | None = None  # a network with the same names that computes something else


def _resnet(prefix: str = "") -> dict[str, str]:
    """Rules for torchvision's names for a ResNet, which are also our names."""
    return {
        rf"{prefix}((?:conv|bn)1\..+)": r"backbone.\1",
        rf"{prefix}(layer[1-4]\.\d+\.(?:conv[1-3]|bn[1-3]|downsample\.[01])\..+)": r"backbone.\1",
    }


def _stem(prefix: str) -> dict[str, str]:
    """Rules for a stem of three convolutions, each followed by BatchNorm and ReLU, all numbered consecutively."""
    places = {0: "conv1", 1: "bn1", 3: "conv2", 4: "bn2", 6: "conv3", 7: "bn3"}
    return {rf"{prefix}{place}\.(.+)": rf"backbone.{name}.\1" for place, name in places.items()}


_CLASSIFIER = (r"fc\..+",)
_RESNET_D = Refusal(r"layer1\.0\.downsample\.2\.weight", "it averages before it downsamples (ResNet-D)")

FORMATS: dict[str, tuple[Format, ...]] = {
    "hszhao": (
        Format(
            recognized_by=r"cls\.4\.weight",
            ours={
                **_stem(r"layer0\."),
                **_resnet(),
                r"ppm\.features\.([0-3])\.([12])\.(.+)": r"pyramid.branches.\1.\2.\3",
                r"cls\.([014])\.(.+)": r"head.\1.\2",
                r"aux\.([014])\.(.+)": r"auxiliary_head.\1.\2",
            },
            whole=WholeNetwork(dilation="full", align_corners=True, dilates_basic_blocks=True),
        ),
        Format(  # the weights that the project's training starts from
            recognized_by=r"bn3\.weight",
            ours={r"((?:conv|bn)[23]\..+)": r"backbone.\1", **_resnet()},
            unused=_CLASSIFIER,
        ),
    ),
    "mmseg": (
        Format(
            recognized_by=r"decode_head\.conv_seg\.weight",
            ours={
                **_stem(r"backbone\.stem\."),
                **_resnet(r"backbone\."),
                r"decode_head\.psp_modules\.([0-3])\.1\.conv\.(.+)": r"pyramid.branches.\1.1.\2",
                r"decode_head\.psp_modules\.([0-3])\.1\.bn\.(.+)": r"pyramid.branches.\1.2.\2",
                r"decode_head\.bottleneck\.conv\.(.+)": r"head.0.\1",
                r"decode_head\.bottleneck\.bn\.(.+)": r"head.1.\1",
                r"decode_head\.conv_seg\.(.+)": r"head.4.\1",
                r"auxiliary_head\.convs\.0\.conv\.(.+)": r"auxiliary_head.0.\1",
                r"auxiliary_head\.convs\.0\.bn\.(.+)": r"auxiliary_head.1.\1",
                r"auxiliary_head\.conv_seg\.(.+)": r"auxiliary_head.4.\1",
            },
            unused=(r"data_preprocessor\..+",),
            whole=WholeNetwork(dilation="contract", align_corners=False, dilates_basic_blocks=False),
        ),
        Format(
            recognized_by=r"backbone\.layer1\.0\.conv1\.weight",
            ours={**_stem(r"backbone\.stem\."), **_resnet(r"backbone\.")},
            unused=(r"(head|neck|data_preprocessor)\..+",),
        ),
    ),
    "torchvision": (
        Format(recognized_by=r"conv1\.weight", ours=_resnet(), unused=_CLASSIFIER),
        Format(  # FCN and DeepLabV3, which have different heads
            recognized_by=r"backbone\.layer1\.0\.conv1\.weight",
            ours=_resnet(r"backbone\."),
            unused=(r"(aux_)?classifier\..+",),
        ),
    ),
    "timm": (
        Format(
            recognized_by=r"conv1\.0\.weight",
            ours={
                r"conv1\.0\.(.+)": r"backbone.conv1.\1",
                r"conv1\.1\.(.+)": r"backbone.bn1.\1",
                r"conv1\.3\.(.+)": r"backbone.conv2.\1",
                r"conv1\.4\.(.+)": r"backbone.bn2.\1",
                r"conv1\.6\.(.+)": r"backbone.conv3.\1",
                r"bn1\.(.+)": r"backbone.bn3.\1",
                **_resnet(),
            },
            unused=_CLASSIFIER,
            refused=_RESNET_D,
        ),
        Format(
            recognized_by=r"conv1\.weight",
            ours=_resnet(),
            unused=_CLASSIFIER,
            refused=_RESNET_D,
        ),
    ),
    "moco": (
        Format(  # v1 and v2
            recognized_by=r"encoder_q\.layer1\.0\.conv1\.weight",
            ours=_resnet(r"encoder_q\."),
            unused=(r"encoder_q\.fc\..+", r"encoder_k\..+", r"queue(_ptr)?"),
        ),
        Format(  # v3
            recognized_by=r"base_encoder\.layer1\.0\.conv1\.weight",
            ours=_resnet(r"base_encoder\."),
            unused=(r"base_encoder\.fc\..+", r"momentum_encoder\..+", r"predictor\..+"),
        ),
        Format(  # SimSiam
            recognized_by=r"encoder\.layer1\.0\.conv1\.weight",
            ours=_resnet(r"encoder\."),
            unused=(r"encoder\.fc\..+", r"predictor\..+"),
        ),
    ),
    "densecl": (
        Format(recognized_by=r"conv1\.weight", ours=_resnet(), unused=_CLASSIFIER),
        Format(
            recognized_by=r"encoder_q\.0\.layer1\.0\.conv1\.weight",
            ours=_resnet(r"encoder_q\.0\."),
            unused=(r"encoder_q\.1\..+", r"encoder_k\..+", r"queue2?(_ptr)?", r"(backbone|head|neck)\..+"),
        ),
        Format(
            recognized_by=r"backbone\.layer1\.0\.conv1\.weight",
            ours=_resnet(r"backbone\."),
            unused=(r"(head|neck|encoder_k|data_preprocessor)\..+", r"queue2?(_ptr)?"),
        ),
    ),
    "swav": (
        Format(
            recognized_by=r"conv1\.weight",
            ours=_resnet(),
            unused=(r"projection_head\..+", r"prototypes\..+"),
        ),
    ),
    "dino": (
        Format(recognized_by=r"conv1\.weight", ours=_resnet(), unused=_CLASSIFIER),
        Format(
            recognized_by=r"backbone\.layer1\.0\.conv1\.weight",
            ours=_resnet(r"backbone\."),
            unused=(r"head\..+", r"backbone\.fc\..+"),
        ),
    ),
}
