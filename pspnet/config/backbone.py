"""`backbone`: the ResNet that pretrain and finetune share."""

from typing import Annotated, Literal

from pydantic import Field

from pspnet.config.section import Section


class BackboneParams(Section):
    depth: Literal[18, 34, 50, 101, 152]
    """Which ResNet."""
    width: Annotated[float, Field(ge=0.125, le=2)]
    """Factor on every channel count: 1 is the published network, 0.25 a tiny one for demos and tests."""
