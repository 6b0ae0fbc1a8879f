"""A directory with a backbone, written by `pretrain` for `finetune` or imported from another project."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from pspnet.errors import Problem, UserError
from pspnet.model.backbone.facts import read_json, write_json
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.backbone.resnet import Depth, Dilation, OutputStride, ResNet, Stem
from pspnet.model.backbone.weights import load_weights, save_weights

FORMAT_VERSION = 2
WEIGHTS = "backbone.safetensors"
FACTS = "backbone.json"


@dataclass(frozen=True)
class PretrainedBackbone:
    """The origin of the weights in a folder. Random weights that have not been trained by any method are not saved."""

    method: str  # the self-supervised method that trained the weights on our images, or none
    depth: Depth
    width: float
    preprocessing: Preprocessing
    fingerprints: dict[str, str]  # fingerprints of the splits it was trained on
    stem: Stem = "seven"
    image_channels: int = 3
    weights: str = "random"  # the method's initial weights: random, imagenet, or the project they come from

    @property
    def pretraining(self) -> str:
        """The origin of the initial weights and the method, for reports. It is none if the weights are random."""
        steps = [step for step in (self.weights, self.method) if step not in ("random", "none")]
        return ", ".join(steps) or "none"

    def save(self, backbone: ResNet, folder: Path) -> None:
        if self.pretraining != "none":
            save_weights(backbone, folder / WEIGHTS)
        write_json({"format_version": FORMAT_VERSION, **asdict(self)}, folder / FACTS)

    @classmethod
    def open(cls, folder: Path) -> "PretrainedBackbone":
        facts = read_json(folder / FACTS, FORMAT_VERSION)
        del facts["format_version"]
        colors = {key: tuple(value) for key, value in facts.pop("preprocessing").items()}
        return cls(preprocessing=Preprocessing(**colors), **facts)

    def load_into(self, backbone: ResNet, folder: Path) -> None:
        held, wanted = (
            f"ResNet-{one.depth} with width {one.width:g}, stem {one.stem} and {one.image_channels}-channel input"
            for one in (self, backbone)
        )
        if held != wanted:
            fix = "Create it again with the current params.yaml, or set `backbone` there to match."
            if self.image_channels != backbone.image_channels:
                fix = "Import it again with --channels 3."
            raise UserError(Problem(str(folder), f"contains a {held}", wanted, fix))
        if self.pretraining != "none":
            load_weights(backbone, folder / WEIGHTS)


def random_backbone(
    depth: Depth,
    width: float,
    output_stride: OutputStride,
    seed: int,
    stem: Stem = "seven",
    dilation: Dilation = "full",
) -> ResNet:
    torch.manual_seed(seed)
    return ResNet(depth, width, output_stride, stem, dilation)
