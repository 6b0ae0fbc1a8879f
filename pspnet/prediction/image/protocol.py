"""How an image is predicted: windows, scales and flipping. This module does not need torch."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PredictionProtocol:
    """The params of the section `predict`. The probabilities of all scales and mirror images are averaged.

    A window is about window_px wide after scaling, so how much of the image it covers depends on the scale.
    """

    window_px: int
    window_overlap_px: int
    scales: Sequence[float]
    flip: bool

    def __str__(self) -> str:
        scales = ", ".join(f"{scale:g}" for scale in self.scales)
        several, is_scaled = len(self.scales) > 1, list(self.scales) != [1]
        return (
            f"{f'mean over the scales {scales}' if several else f'single scale {scales}'}, "
            f"{'mean with the mirror image' if self.flip else 'no flip'}; images longer than {self.window_px:,} px "
            f"in windows of {self.window_px:,} px that overlap by {self.window_overlap_px:,} px"
            f"{', each as it is scaled' if is_scaled else ''}"
        )
