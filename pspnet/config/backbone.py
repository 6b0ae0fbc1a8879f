"""`backbone`: the ResNet that pretrain and finetune share."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pspnet.config.section import Section


class BackboneParams(Section):
    depth: Literal[18, 34, 50, 101, 152]
    """Which ResNet."""
    width: Annotated[float, Field(ge=0.125, le=2)]
    """Factor on every channel count: 1 is the published network, 0.25 a tiny one for demos and tests."""
    stem: Literal["seven", "deep", "deep_narrow"]
    """What the images meet first. `seven`: one 7x7 convolution, as torchvision. `deep`: three of 3x3 with 64, 64 and
    128 channels, as the authors' code. `deep_narrow`: with 32, 32 and 64, as mmsegmentation."""
    dilation: Literal["full", "contract"]
    """In stages that keep their resolution. `full`: every block is dilated, as the authors' code. `contract`: the first
    block as the stage before it, as torchvision and mmsegmentation."""
    weights: Literal["random", "imagenet", "imported"]
    """What pretrain starts from. `imagenet`: torchvision's, downloaded once. `imported`: data/weights/imported, made by
    `pspnet weights import`. From these two the images are normalised as their weights want it."""

    @model_validator(mode="after")
    def _imagenet_has_such_weights(self) -> Self:
        if self.weights == "imagenet" and (self.width, self.stem) != (1, "seven"):
            raise ValueError("width 1 and stem seven with weights: imagenet")
        return self
