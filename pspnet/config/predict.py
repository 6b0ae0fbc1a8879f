"""`predict`: how an image becomes a mask, in evaluate, predict and serving alike."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from pspnet.config.section import Count, Pixels, Section

Scale = Annotated[float, Field(ge=0.25, le=4)]


class PredictParams(Section):
    window_px: Pixels
    """An image with a longer side than this is predicted in overlapping square windows of this side."""
    window_overlap_px: Count
    """Pixels that neighbouring windows share; each counts less towards its border."""
    scales: Annotated[list[Scale], Field(min_length=1)]
    """An image is predicted at each of these sizes, 1 being its own, and the probabilities are averaged."""
    flip: bool
    """Its mirror image is predicted too: twice the work."""

    @model_validator(mode="after")
    def _windows_advance(self) -> Self:
        if self.window_overlap_px >= self.window_px:
            raise ValueError("window_overlap_px smaller than window_px")
        if len(set(self.scales)) < len(self.scales):
            raise ValueError("scales that are all different")
        return self
