"""`pretrain`: self-supervised training of the backbone on train and unlabeled images."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pspnet.config.optimizer import OptimizerParams
from pspnet.config.section import (
    AtLeastOne,
    Count,
    Degrees,
    Pixels,
    Positive,
    Section,
    Share,
    check_parts,
)


class _Method(Section):
    def check_views(self, crop_px: int, output_stride: int) -> None:
        """Raise a ValueError if views of this side, or features of this stride, do not suit the settings."""


class NoMethodParams(_Method):
    """Keep the weights selected by `backbone.weights`."""

    kind: Literal["none"]


class RotationParams(_Method):
    """Predict which way is up."""

    kind: Literal["rotation"]


class JigsawParams(_Method):
    """Predict where in the view each shuffled patch belongs."""

    kind: Literal["jigsaw"]
    grid: Annotated[int, Field(ge=2, le=7, examples=[3])]
    """The view is cut into grid x grid patches."""
    gap_px: Annotated[Count, Field(examples=[6])]
    """Border cut off each patch, so that edges cannot be matched."""
    gray_probability: Annotated[Share, Field(examples=[0.3])]
    """Share of views that are gray, so that color fringes cannot be matched."""

    def check_views(self, crop_px: int, output_stride: int) -> None:
        if crop_px // self.grid <= 2 * self.gap_px:
            raise ValueError("method.gap_px of less than half a patch (crop_px / method.grid)")


class InpaintingParams(_Method):
    """Predict what the hidden blocks show."""

    kind: Literal["inpainting"]
    block_px: Annotated[int, Field(ge=2, examples=[32])]
    """Side of the hidden square blocks."""
    hidden_share: Annotated[float, Field(gt=0, lt=1, examples=[0.4])]
    """Share of the blocks that are hidden."""

    def check_views(self, crop_px: int, output_stride: int) -> None:
        if self.block_px > crop_px // 2:
            raise ValueError("method.block_px of at most half of crop_px")


class MaskedParams(_Method):
    """What do the hidden patches show, from features in which they are missing at every stage?"""

    kind: Literal["masked"]
    patch_px: Annotated[int, Field(ge=8, examples=[32])]
    """Side of a patch. Small patches are easy to guess from their neighbors; 16 to 32 suit most images."""
    hidden_share: Annotated[float, Field(gt=0, lt=1, examples=[0.6])]
    """Share of the patches that are hidden."""
    select: Annotated[Literal["random", "hard"], Field(examples=["random"])]
    """Whether all hidden patches are drawn, or half of them are those whose like had the highest loss lately."""

    def check_views(self, crop_px: int, output_stride: int) -> None:
        if self.patch_px % output_stride:
            raise ValueError("method.patch_px of a multiple of output_stride, so that a feature belongs to one patch")
        if crop_px % self.patch_px or crop_px == self.patch_px:
            raise ValueError("crop_px of a multiple of method.patch_px, at least twice as large")


class DenseCLParams(_Method):
    """Which image, and which place in it, does a view show?"""

    kind: Literal["densecl"]
    momentum: Annotated[float, Field(gt=0, lt=1, examples=[0.99])]
    """Share of itself that the second network keeps in each step, less in the first ones. Long runs use 0.999."""
    queue_size: Annotated[int, Field(ge=16, examples=[4096])]
    """The number of earlier images that a view is told apart from. More than the images that there are is of no use."""
    grid: Annotated[int, Field(ge=2, le=16, examples=[7])]
    """Places are the cells of a grid x grid mean of the features."""
    gray_probability: Annotated[Share, Field(examples=[0.2])]
    """Share of views that are gray, so that colors alone do not tell images apart."""


MethodParams = NoMethodParams | RotationParams | JigsawParams | InpaintingParams | MaskedParams | DenseCLParams


class PretrainParams(Section):
    method: Annotated[MethodParams, Field(discriminator="kind")]
    """The task that trains the backbone without masks, and its own settings."""
    epochs: AtLeastOne
    """Passes over the images."""
    batch_size: Annotated[int, Field(ge=2)]
    """Images per step, over all devices."""
    crop_px: Pixels
    """Side of the square views."""
    scale_min: Positive
    """Smallest random factor by which an image is scaled before a view is cut from it."""
    scale_max: Positive
    """Largest random factor by which an image is scaled before a view is cut from it."""
    rotation_degrees: Degrees
    """Half of the views are rotated by a random angle up to this; 0: none."""
    flip_probability: Share
    """Probability of mirroring left and right; 0 if left and right differ in meaning."""
    blur_probability: Share
    """Probability of a Gaussian blur over 5 x 5 pixels."""
    color_jitter: Share
    """Strength of random brightness, contrast and saturation."""
    output_stride: Literal[8, 16, 32]
    """Pixels per feature. A larger value than in finetune is cheaper, and the weights still fit, because dilation does
    not change their shapes."""
    optimizer: OptimizerParams
    """How gradients change the weights."""

    @model_validator(mode="after")
    def _views_show_something(self) -> Self:
        if self.scale_min > self.scale_max:
            raise ValueError("scale_min of at most scale_max")
        self.method.check_views(self.crop_px, self.output_stride)
        return self

    @model_validator(mode="after")
    def _parts_of_a_step_are_whole(self) -> Self:
        check_parts(self.batch_size, self.optimizer.accumulation_steps)
        return self
