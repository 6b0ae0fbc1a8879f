"""`finetune`: supervised training of the whole network."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pspnet.config.section import AtLeastOne, Count, NotNegative, Pixels, Positive, Section, Share


class FinetuneParams(Section):
    epochs: AtLeastOne
    """Passes over the training images; the best one on val is kept."""
    batch_size: Annotated[int, Field(ge=2)]
    """Images of one step, over all devices. At least 2: the pyramid's 1x1 bin has one value per image to normalise."""
    crop_height_px: Pixels
    """Height of the training crops."""
    crop_width_px: Pixels
    """Width of the training crops."""
    scale_min: Positive
    """Images are enlarged by a random factor before cropping: the smallest ..."""
    scale_max: Positive
    """... and the largest."""
    flip_probability: Share
    """Of mirroring left and right; 0 where left and right differ in meaning."""
    color_jitter: Share
    """Strength of random brightness, contrast and saturation."""
    output_stride: Literal[8, 16, 32]
    """Pixels per feature: 8 as published; 16 is about three times cheaper and loses thin objects."""
    auxiliary_weight: NotNegative
    """Loss = main + auxiliary_weight * loss of the head on layer3. 0.4 as published."""
    dropout: Annotated[float, Field(ge=0, lt=1)]
    """Share of the channels dropped before the classifiers. 0.1 as published."""
    optimizer: Literal["adamw", "sgd"]
    """AdamW suits short runs, SGD long ones."""
    learning_rate: Positive
    """After warm-up; from there it falls to 0 by the poly rule."""
    backbone_learning_rate_factor: NotNegative
    """Factor for the backbone. 1 unless the backbone was trained at length: a small factor hurts weak weights."""
    frozen_layers: Annotated[int, Field(ge=0, le=5)]
    """How much of the backbone stays as pretrained: 0 nothing, 1 the stem, 2 also layer1, ... 5 everything."""
    momentum: Annotated[float, Field(ge=0, lt=1)]
    """Of SGD; AdamW has its own."""
    weight_decay: NotNegative
    """Decoupled in AdamW, added to the gradient in SGD."""
    warmup_steps: Count
    """Steps over which the learning rate rises from 0."""
    poly_power: Positive
    """Learning rate = learning_rate * (1 - step / steps) ** poly_power."""

    @model_validator(mode="after")
    def _scales_are_in_order(self) -> Self:
        if self.scale_min > self.scale_max:
            raise ValueError("scale_min of at most scale_max")
        return self
