"""`predict`: how an image becomes a mask, in evaluate, predict and serving alike."""

from typing import Self

from pydantic import model_validator

from pspnet.config.section import Count, Pixels, Section


class PredictParams(Section):
    window_px: Pixels
    """An image with a longer side than this is predicted in overlapping square windows of this side."""
    window_overlap_px: Count
    """Pixels that neighbouring windows share; their probabilities are averaged there."""

    @model_validator(mode="after")
    def _windows_advance(self) -> Self:
        if self.window_overlap_px >= self.window_px:
            raise ValueError("window_overlap_px smaller than window_px")
        return self
