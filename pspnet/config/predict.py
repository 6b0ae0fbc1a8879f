"""`predict`: how `evaluate`, `predict` and `serve` turn an image into a mask."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from pspnet.config.section import Count, Pixels, Section

Scale = Annotated[float, Field(ge=0.25, le=4)]


class PredictParams(Section):
    window_px: Pixels
    """An image with a longer side is predicted in overlapping square windows of this side."""
    window_overlap_px: Count
    """Number of pixels shared by neighboring windows. Each window counts less toward its border."""
    scales: Annotated[list[Scale], Field(min_length=1)]
    """Each image is predicted at each of these scales, and the probabilities are averaged. 1 is its original size."""
    flip: bool
    """Whether the mirror image is predicted and averaged too, which doubles the work."""

    @model_validator(mode="after")
    def _windows_advance(self) -> Self:
        if self.window_overlap_px >= self.window_px:
            raise ValueError("window_overlap_px smaller than window_px")
        if len(set(self.scales)) < len(self.scales):
            raise ValueError("scales that are all different")
        return self
