"""`pretrain`: self-supervised training of the backbone on train and unlabelled images."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pspnet.config.section import AtLeastOne, Count, NotNegative, Pixels, Positive, Section, Share


class JigsawParams(Section):
    grid: Annotated[int, Field(ge=2, le=7)]
    """The view is cut into grid x grid patches."""
    gap_px: Count
    """Border cut off every patch, so that edges cannot be matched."""
    gray_probability: Share
    """Share of the views shown in gray, so that colour fringes cannot be matched."""


class InpaintingParams(Section):
    block_px: Annotated[int, Field(ge=2)]
    """Side of the square blocks that are hidden."""
    hidden_share: Annotated[float, Field(gt=0, lt=1)]
    """Share of the blocks that is hidden."""


class PretrainParams(Section):
    method: Literal["none", "rotation", "jigsaw", "inpainting"]
    """The task the backbone learns from unlabelled images. `none`: it starts from random weights."""
    epochs: AtLeastOne
    """Passes over the images."""
    batch_size: Annotated[int, Field(ge=2)]
    """Images of one step, over all devices."""
    crop_px: Pixels
    """Side of the square views."""
    scale_min: Positive
    """Views are cut from the image enlarged by a random factor: the smallest ..."""
    scale_max: Positive
    """... and the largest."""
    flip_probability: Share
    """Of mirroring left and right; 0 where left and right differ in meaning."""
    color_jitter: Share
    """Strength of random brightness, contrast and saturation."""
    output_stride: Literal[8, 16, 32]
    """Pixels per feature. Coarser than in finetune is cheaper and fits: dilation changes no weight's shape."""
    optimizer: Literal["adamw", "sgd"]
    """AdamW suits short runs, SGD long ones."""
    learning_rate: Positive
    """After warm-up; from there it falls to 0 by the poly rule."""
    momentum: Annotated[float, Field(ge=0, lt=1)]
    """Of SGD; AdamW has its own."""
    weight_decay: NotNegative
    """Decoupled in AdamW, added to the gradient in SGD."""
    warmup_steps: Count
    """Steps over which the learning rate rises from 0."""
    poly_power: Positive
    """Learning rate = learning_rate * (1 - step / steps) ** poly_power."""
    jigsaw: JigsawParams
    """Read by that method."""
    inpainting: InpaintingParams
    """Read by that method."""

    @model_validator(mode="after")
    def _views_show_something(self) -> Self:
        if self.scale_min > self.scale_max:
            raise ValueError("scale_min of at most scale_max")
        if self.crop_px // self.jigsaw.grid <= 2 * self.jigsaw.gap_px:
            raise ValueError("jigsaw.gap_px of less than half a patch (crop_px / jigsaw.grid)")
        if self.inpainting.block_px > self.crop_px // 2:
            raise ValueError("inpainting.block_px of at most half of crop_px")
        return self
