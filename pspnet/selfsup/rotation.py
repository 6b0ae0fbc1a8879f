"""Rotation prediction (Gidaris et al., 2018): which way is up?"""

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from pspnet.config.pretrain import RotationParams
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.backbone.resnet import ResNet
from pspnet.selfsup.pretext import Crop, Pretext, Views

TURNS = 4


class Rotation(Pretext[RotationParams]):
    def __init__(self, backbone: ResNet, preprocessing: Preprocessing, params: RotationParams) -> None:
        super().__init__(backbone, preprocessing, params)
        self.classifier = nn.Linear(backbone.channels[-1], TURNS)

    @staticmethod
    def views(crop: Crop, params: RotationParams, rng: np.random.Generator) -> Views:
        # Views are square and are cropped before they are rotated, so neither shape nor borders reveal the angle.
        turns = rng.integers(TURNS)
        return {"image": np.rot90(crop(), int(turns)), "turns": np.array(turns)}

    def forward(self, views: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        *_, c5 = self.backbone(self.preprocessing(views["image"]))
        logits = self.classifier(c5.mean(dim=(2, 3))).float()
        right = (logits.argmax(dim=1) == views["turns"]).float().mean()
        return F.cross_entropy(logits, views["turns"]), {"accuracy": right}
