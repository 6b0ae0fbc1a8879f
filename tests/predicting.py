"""Creates predictors for tests."""

from collections.abc import Sequence

import torch

from pspnet.model.bundle import Bundle
from pspnet.prediction.image.predictor import Member, Predictor
from pspnet.prediction.image.protocol import PredictionProtocol


def predictor(
    *models: Bundle | Member,
    window_px: int = 1024,
    window_overlap_px: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> Predictor:
    """Create a predictor on the CPU. The overlap defaults to a quarter of the window, as in params.yaml."""
    overlap = window_px // 4 if window_overlap_px is None else window_overlap_px
    members = [Member(model.network, model.preprocessing) for model in models]
    return Predictor(members, PredictionProtocol(window_px, overlap, scales, flip), torch.device("cpu"), "fp32")
