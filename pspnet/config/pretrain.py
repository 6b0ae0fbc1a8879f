"""`pretrain`: self-supervised training of the backbone on train and unlabelled images."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pspnet.config.section import (
    AtLeastOne,
    Count,
    Degrees,
    NotNegative,
    Pixels,
    Positive,
    Section,
    Share,
    check_parts,
)


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
    """The task the backbone learns from unlabelled images. `none`: it stays as `backbone.weights` says."""
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
    rotation_degrees: Degrees
    """Half of the views are turned by a random angle, of at most this; 0: none is."""
    flip_probability: Share
    """Of mirroring left and right; 0 where left and right differ in meaning."""
    blur_probability: Share
    """Of a Gaussian blur over 5 x 5 pixels."""
    color_jitter: Share
    """Strength of random brightness, contrast and saturation."""
    output_stride: Literal[8, 16, 32]
    """Pixels per feature. Coarser than in finetune is cheaper and fits: dilation changes no weight's shape."""
    optimizer: Literal["adamw", "sgd", "rmsprop"]
    """AdamW suits short runs, SGD long ones."""
    learning_rate: Positive
    """Of the schedule at its beginning; during the warm-up it counts less."""
    momentum: Annotated[float, Field(ge=0, lt=1)]
    """Of SGD and RMSprop; AdamW has its own."""
    weight_decay: NotNegative
    """Decoupled in AdamW, added to the gradient in SGD and RMSprop."""
    decay_norms_and_biases: bool
    """Whether the scales and shifts of BatchNorm and the biases decay too, as published; many recipes spare them."""
    schedule: Literal["poly", "cosine"]
    """How the learning rate falls: by poly_power, or as a half wave of the cosine."""
    warmup_steps: Count
    """Steps over which the learning rate rises from 0."""
    poly_power: Positive
    """Of the schedule `poly`: learning rate = learning_rate * (1 - step / steps) ** poly_power."""
    learning_rate_floor: Share
    """Share of learning_rate to which the schedule falls; 0 as published."""
    gradient_clip_norm: NotNegative
    """Gradients that are longer are shortened to this; 0: never."""
    accumulation_steps: AtLeastOne
    """Parts into which a device splits its images of a step, to need less memory. BatchNorm sees one part at a time."""
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

    @model_validator(mode="after")
    def _parts_of_a_step_are_whole(self) -> Self:
        check_parts(self.batch_size, self.accumulation_steps)
        return self
