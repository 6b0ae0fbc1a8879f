"""The directory `pretrain` hands to `finetune`: backbone weights and what they were made for."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from pspnet.errors import Problem, UserError
from pspnet.model.backbone import Depth, ResNet
from pspnet.model.preprocessing import Preprocessing
from pspnet.model.weights import load_weights, read_json, save_weights, write_json

FORMAT_VERSION = 1
WEIGHTS = "backbone.safetensors"
FACTS = "backbone.json"


@dataclass(frozen=True)
class PretrainedBackbone:
    """How the weights in a folder came to be. `method: none` has no weights."""

    method: str
    depth: Depth
    width: float
    preprocessing: Preprocessing
    fingerprints: dict[str, str]  # of the splits it has seen

    def save(self, backbone: ResNet | None, folder: Path) -> None:
        if backbone is not None:
            save_weights(backbone, folder / WEIGHTS)
        write_json({"format_version": FORMAT_VERSION, **asdict(self)}, folder / FACTS)

    @classmethod
    def open(cls, folder: Path) -> "PretrainedBackbone":
        facts = read_json(folder / FACTS, FORMAT_VERSION)
        del facts["format_version"]
        colors = {key: tuple(value) for key, value in facts.pop("preprocessing").items()}
        return cls(preprocessing=Preprocessing(**colors), **facts)

    def load_into(self, backbone: ResNet, depth: Depth, width: float, folder: Path) -> None:
        if (self.depth, self.width) != (depth, width):
            raise UserError(
                Problem(
                    str(folder),
                    f"holds a ResNet-{self.depth} of width {self.width}",
                    f"ResNet-{depth} of width {width}",
                    "Run the pretrain stage with today's params.yaml.",
                )
            )
        if self.method != "none":
            load_weights(backbone, folder / WEIGHTS)


def random_backbone(depth: Depth, width: float, output_stride: int, seed: int) -> ResNet:
    torch.manual_seed(seed)
    return ResNet(depth, width, output_stride)  # type: ignore[arg-type]
