"""`finetune`: training of the whole network on images with masks, and with `unlabeled` also on images without."""

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


class _UnlabeledParams(Section):
    def check_parts(self, accumulation_steps: int) -> None:
        """Raise a ValueError if a step's images without masks do not split into these parts."""


class NoUnlabeledParams(_UnlabeledParams):
    """Train on images with masks alone."""

    kind: Literal["none"]


class PseudoLabelParams(_UnlabeledParams):
    """A teacher predicts a weak view of an image without a mask; the network learns the prediction on strong views."""

    images_per_step: Annotated[int, Field(ge=2, examples=[8])]
    """Images without masks per step, over all devices, beside `batch_size` images with masks."""
    decay: Annotated[float, Field(ge=0, lt=1, examples=[0.99])]
    """The teacher is a moving average of the network; each step keeps this share of it. 0: the network is its own
    teacher, as published for UniMatch. The teacher only makes pseudo labels: `ema_decay` alone determines which weights
    are measured and kept. With the same value there, they are the teacher's."""
    confidence: Annotated[Share, Field(examples=[0.9])]
    """A predicted pixel becomes a pseudo label if its class is at least this probable. 0.95 as published; 0 accepts
    every pixel."""
    class_balance: Annotated[Share, Field(examples=[0.5])]
    """How far the threshold falls for classes that the teacher rarely predicts with confidence, so that they are not
    forgotten. 0 as published: one threshold for all. 1: to 0 for a class that is never predicted with confidence."""
    warmup_share: Annotated[float, Field(ge=0, lt=1, examples=[0.3])]
    """Share of the steps, at the beginning, that use images with masks alone: early predictions teach mistakes."""
    ramp_share: Annotated[Share, Field(examples=[0.2])]
    """Share of the steps, after the warm-up, over which the weight of the pseudo labels rises from 0."""
    weight: Annotated[Positive, Field(examples=[1.0])]
    """Loss = loss of the masks + weight * loss of the pseudo labels. 1 as published."""
    cutmix_probability: Annotated[Share, Field(examples=[0.5])]
    """Probability that a strong view gets a box from another image, with its pseudo labels. 0.5 as published."""
    color_jitter: Annotated[Share, Field(examples=[0.5])]
    """Strength of random brightness, contrast and saturation in strong views. 0.5 as published."""
    grayscale_probability: Annotated[Share, Field(examples=[0.2])]
    """Share of the strong views in gray. 0.2 as published."""
    blur_probability: Annotated[Share, Field(examples=[0.5])]
    """Share of the strong views that are blurred. 0.5 as published."""

    def check_parts(self, accumulation_steps: int) -> None:
        if self.images_per_step % (2 * accumulation_steps):  # CutMix exchanges boxes within pairs
            raise ValueError(
                f"unlabeled.images_per_step of a multiple of {2 * accumulation_steps}: an even number for each of the "
                "parts (optimizer.accumulation_steps)"
            )


class MeanTeacherParams(PseudoLabelParams):
    """One strong view (Tarvainen and Valpola, 2017; with CutMix: French et al., 2020)."""

    kind: Literal["mean_teacher"]


class UniMatchParams(PseudoLabelParams):
    """Two strong views, and the weak view with some of its features dropped (Yang et al., 2023)."""

    kind: Literal["unimatch"]
    feature_dropout: Annotated[float, Field(ge=0, lt=1, examples=[0.5])]
    """Share of the backbone's channels that are dropped in the weak view. 0.5 as published."""


UnlabeledParams = NoUnlabeledParams | MeanTeacherParams | UniMatchParams


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
    factor hurts if the backbone is poorly trained."""
    head_learning_rate_factor: Positive
    """Factor on the learning rate of the pyramid and the heads, which start from random weights. 10 as published, with
    SGD."""
    frozen_layers: Annotated[int, Field(ge=0, le=5)]
    """How much of the backbone is frozen: 0 for nothing, 1 for the stem, 2 for layer1 too, ... 5 for everything."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    """Share of the weights' moving average that each step keeps. The average is evaluated and saved. 0: no average."""
    patience_validations: Count
    """Training ends after this many validations without improvement; 0: no early stopping."""
    unlabeled: Annotated[UnlabeledParams, Field(discriminator="kind")]
    """How images without masks are used, and the settings of that method: images of train whose mask is missing or not
    used, and those of the split `unlabeled`."""

    @model_validator(mode="after")
    def _scales_are_in_order(self) -> Self:
        if self.scale_min > self.scale_max:
            raise ValueError("scale_min of at most scale_max")
        return self

    @model_validator(mode="after")
    def _parts_of_a_step_are_whole(self) -> Self:
        check_parts(self.batch_size, self.optimizer.accumulation_steps)
        self.unlabeled.check_parts(self.optimizer.accumulation_steps)
        return self
