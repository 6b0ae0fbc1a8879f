"""UniMatch (Yang et al., 2023): two strong views, and the weak view with some of its features dropped."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from pspnet.config.finetune import UniMatchParams
from pspnet.model.backbone.resnet import Features
from pspnet.semisup.pseudo_labels import PseudoLabels


class UniMatch(PseudoLabels[UniMatchParams]):
    streams: ClassVar = {"weak": 0.5, "strong_0": 0.25, "strong_1": 0.25}  # as published
    strong_views = 2

    def perturbed(self, features: Features, sizes: list[int]) -> Features:
        """Whole channels of the weak view are dropped, in every map that the head reads."""
        if len(sizes) == 1:  # only images with masks
            return features

        def dropped(level: Tensor) -> Tensor:
            masked, weak, *strong = torch.split(level, sizes)
            return torch.cat([masked, F.dropout2d(weak, self.params.feature_dropout), *strong])

        c2, c3, c4, c5 = features
        return (c2 if self.supervised.network.fusion is None else dropped(c2)), c3, c4, dropped(c5)
