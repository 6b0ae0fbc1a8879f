"""`finetune`: supervised training of the whole network."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pspnet.config.optimizer import OptimizerParams
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
    """The loss for both heads. `cross_entropy`: the mean over the annotated pixels, as published. `cross_entropy_dice`:
    the weighted sum of cross-entropy and Dice. `dice`: 1 - Dice, the mean over the classes in the batch. `focal`: easy
    pixels have little weight. `ohem`: only hard pixels count."""
    cross_entropy_share: Share
    """For cross_entropy_dice: the factor a in a * cross-entropy + (1 - a) * Dice loss."""
    focal_gamma: NotNegative
    """For focal: cross-entropy times (1 - p) ** gamma, where p is the right class's probability. 2 as published."""
    ohem_threshold: Annotated[float, Field(gt=0, le=1)]
    """For ohem: a pixel counts if its right class has at most this probability."""
    ohem_least_share: Annotated[float, Field(gt=0, le=1)]
    """For ohem: the hardest pixels, this share of the annotated ones, always count."""
    class_weights: Literal["none", "given", "median_frequency", "inverse_sqrt"]
    """How much each class counts. `median_frequency`: the median pixel count of the classes that occur in
    the training masks, divided by the class's own count. `inverse_sqrt`: the square root of that. `given`: see
    given_weights."""
    class_weight_max: Positive
    """Upper limit on weights computed from pixels; a class of median frequency has weight 1."""
    given_weights: dict[str, NotNegative]
    """Class name -> weight, for every class; read if class_weights is given."""


class FinetuneParams(Section):
    epochs: Positive
    """Passes over the training images; 0.5 uses half of them."""
    validations: AtLeastOne
    """Number of times the network is evaluated on val, at evenly spaced steps. The best weights are kept."""
    batch_size: AtLeastOne
    """Images per step, over all devices. If it is 1, BatchNorm in the pyramid's 1x1 bin keeps its initial
    statistics."""
    crop_height_px: Pixels
    """Height of the training crops."""
    crop_width_px: Pixels
    """Width of the training crops."""
    scale_min: Positive
    """Smallest random factor by which images are scaled before cropping."""
    scale_max: Positive
    """Largest random factor by which images are scaled before cropping."""
    rotation_degrees: Degrees
    """Half of the images are rotated by a random angle up to this. 10 as published; 0: none."""
    flip_probability: Share
    """Probability of mirroring left and right; 0 if left and right differ in meaning."""
    blur_probability: Share
    """Probability of a Gaussian blur over 5 x 5 pixels. 0.5 as published."""
    color_jitter: Share
    """Strength of random brightness, contrast and saturation."""
    output_stride: Literal[8, 16, 32]
    """Pixels per feature: 8 as published; 16 is about three times cheaper but loses thin objects."""
    align_corners: bool
    """How features are enlarged: true as in the authors' code, false as in most others. Any image size works."""
    decoder: Literal["plain", "low_level"]
    """`plain` as published. `low_level`: the pyramid's output is joined with features at a quarter of the image's size,
    for thin objects, but the head then costs several times as much."""
    pyramid_weights: Literal["none", "learned"]
    """`none` as published. `learned`: a factor on each branch of the pyramid, initially 1."""
    auxiliary_weight: NotNegative
    """Loss = main + auxiliary_weight * loss of the head on layer3. 0.4 as published."""
    loss: LossParams
    """The loss to minimize, for both heads."""
    dropout: Annotated[float, Field(ge=0, lt=1)]
    """Share of the channels dropped before the classifiers. 0.1 as published."""
    optimizer: OptimizerParams
    """How gradients change the weights."""
    backbone_learning_rate_factor: NotNegative
    """Factor on the backbone's learning rate. Use 1 unless the backbone was trained for a long time, because a smaller
    factor hurts weak weights."""
    head_learning_rate_factor: Positive
    """Factor on the learning rate of the pyramid and the heads, which start from random weights. 10 as published, with
    SGD."""
    frozen_layers: Annotated[int, Field(ge=0, le=5)]
    """How much of the backbone is frozen: 0 for nothing, 1 for the stem, 2 for layer1 too, ... 5 for everything."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    """Share of the weights' moving average that each step keeps. The average is evaluated and saved. 0: no average."""
    patience_validations: Count
    """Training ends after this many validations without improvement; 0: no early stopping."""

    @model_validator(mode="after")
    def _scales_are_in_order(self) -> Self:
        if self.scale_min > self.scale_max:
            raise ValueError("scale_min of at most scale_max")
        return self

    @model_validator(mode="after")
    def _parts_of_a_step_are_whole(self) -> Self:
        check_parts(self.batch_size, self.optimizer.accumulation_steps)
        return self
