"""`backbone`: the ResNet that `pretrain` and `finetune` share."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pspnet.config.section import Section


class BackboneParams(Section):
    depth: Literal[18, 34, 50, 101, 152]
    """Number of layers of the ResNet."""
    width: Annotated[float, Field(ge=0.125, le=2)]
    """Factor on the channel counts: 1 is the published network, and 0.25 is a tiny network for demos and tests."""
    stem: Literal["seven", "deep", "deep_narrow"]
    """The first convolutions. `seven`: one 7x7 convolution, as in torchvision. `deep`: three 3x3 convolutions with 64,
    64 and 128 channels, as in the authors' code. `deep_narrow`: the same with 32, 32 and 64, as in mmsegmentation."""
    dilation: Literal["full", "contract"]
    """Which blocks are dilated in stages that keep their resolution. `full`: every block, as in the authors' code.
    `contract`: the first block keeps the dilation of the previous stage, as in torchvision and mmsegmentation."""
    weights: Literal["random", "imagenet", "imported"]
    """The weights that `pretrain` starts from. `imagenet`: torchvision's, downloaded once. `imported`: those in
    data/weights/imported, written by `pspnet weights import`. Both come with their normalization."""

    @model_validator(mode="after")
    def _imagenet_weights_exist(self) -> Self:
        if self.weights == "imagenet" and (self.width, self.stem) != (1, "seven"):
            raise ValueError("width 1 and stem seven with weights: imagenet")
        return self
