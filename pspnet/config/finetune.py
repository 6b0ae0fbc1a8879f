"""`finetune`: supervised training of the whole network."""

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


class LossParams(Section):
    kind: Literal["cross_entropy", "cross_entropy_dice", "dice", "focal", "ohem"]
    """What is made small, for the main and the auxiliary head: the mean over the annotated pixels, as published; a sum
    of it and 1 - Dice; 1 - Dice alone, the mean over the classes a batch shows; with easy pixels weighing little; over
    hard pixels only."""
    cross_entropy_share: Share
    """Of cross_entropy_dice: a * cross-entropy + (1 - a) * Dice loss."""
    focal_gamma: NotNegative
    """Of focal: cross-entropy times (1 - p) ** gamma, where p is the share given to the right class. 2 as published."""
    ohem_threshold: Annotated[float, Field(gt=0, le=1)]
    """Of ohem: pixels whose right class is given at most this count, ..."""
    ohem_least_share: Annotated[float, Field(gt=0, le=1)]
    """... and at least this share of the annotated pixels, the hardest."""
    class_weights: Literal["none", "given", "median_frequency", "inverse_sqrt"]
    """How much the pixels of a class count. From the class's pixels in the masks of train: median / pixels, or the
    square root of that."""
    class_weight_max: Positive
    """Largest weight that is taken from pixels; the class of median frequency has 1."""
    given_weights: dict[str, NotNegative]
    """Class name -> weight, of every class; read where class_weights is given."""


class FinetuneParams(Section):
    epochs: AtLeastOne
    """Passes over the training images; the best one on val is kept."""
    batch_size: AtLeastOne
    """Images of one step, over all devices. With 1 the pyramid's 1x1 bin keeps the statistics its BatchNorm began with.
    """
    crop_height_px: Pixels
    """Height of the training crops."""
    crop_width_px: Pixels
    """Width of the training crops."""
    scale_min: Positive
    """Images are enlarged by a random factor before cropping: the smallest ..."""
    scale_max: Positive
    """... and the largest."""
    rotation_degrees: Degrees
    """Half of the images are turned by a random angle, of at most this. 10 as published; 0: none is."""
    flip_probability: Share
    """Of mirroring left and right; 0 where left and right differ in meaning."""
    blur_probability: Share
    """Of a Gaussian blur over 5 x 5 pixels. 0.5 as published."""
    color_jitter: Share
    """Strength of random brightness, contrast and saturation."""
    output_stride: Literal[8, 16, 32]
    """Pixels per feature: 8 as published; 16 is about three times cheaper and loses thin objects."""
    align_corners: bool
    """How features are enlarged: true as the authors' code, false as most others. Images of any size either way."""
    decoder: Literal["plain", "low_level"]
    """`plain` as published. `low_level`: the pyramid's output is joined with features of a quarter of the image's size,
    for thin objects; the head then costs several times as much."""
    pyramid_weights: Literal["none", "learned"]
    """`none` as published. `learned`: a factor on each branch of the pyramid, which begins as 1."""
    auxiliary_weight: NotNegative
    """Loss = main + auxiliary_weight * loss of the head on layer3. 0.4 as published."""
    loss: LossParams
    """What is made small. The same for the head on layer3."""
    dropout: Annotated[float, Field(ge=0, lt=1)]
    """Share of the channels dropped before the classifiers. 0.1 as published."""
    optimizer: Literal["adamw", "sgd", "rmsprop"]
    """AdamW suits short runs, SGD long ones and is what was published."""
    learning_rate: Positive
    """Of the schedule at its beginning; during the warm-up it counts less."""
    backbone_learning_rate_factor: NotNegative
    """Factor for the backbone. 1 unless the backbone was trained at length: a small factor hurts weak weights."""
    head_learning_rate_factor: Positive
    """Factor for the pyramid and the heads, which start from random weights. 10 as published, with SGD."""
    frozen_layers: Annotated[int, Field(ge=0, le=5)]
    """How much of the backbone stays as pretrained: 0 nothing, 1 the stem, 2 also layer1, ... 5 everything."""
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
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    """Measured and kept is a moving average of the weights; of the one before, this much stays in a step. 0: none."""
    patience_epochs: Count
    """Training ends after so many epochs without a better one on val; 0: never early."""

    @model_validator(mode="after")
    def _scales_are_in_order(self) -> Self:
        if self.scale_min > self.scale_max:
            raise ValueError("scale_min of at most scale_max")
        return self

    @model_validator(mode="after")
    def _parts_of_a_step_are_whole(self) -> Self:
        check_parts(self.batch_size, self.accumulation_steps)
        return self
