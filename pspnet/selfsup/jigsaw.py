"""Jigsaw as dense classification: the patches of a view are shuffled, and the network predicts where each came from.

Asking about each patch, not each permutation (Noroozi and Favaro, 2016), needs no table of permutations and trains the
feature map that segmentation will use.
"""

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from pspnet.config.pretrain import JigsawParams
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.backbone.pyramid import AverageBins
from pspnet.model.backbone.resnet import ResNet
from pspnet.selfsup.pretext import Crop, Pretext, Views


class Jigsaw(Pretext[JigsawParams]):
    def __init__(self, backbone: ResNet, preprocessing: Preprocessing, params: JigsawParams) -> None:
        super().__init__(backbone, preprocessing, params)
        grid = params.grid
        self.average = AverageBins(grid)
        self.classifier = nn.Conv2d(backbone.channels[-1], grid**2, 1)

    @staticmethod
    def views(crop: Crop, params: JigsawParams, rng: np.random.Generator) -> Views:
        grid, gap, image = params.grid, params.gap_px, crop()
        side = len(image) // grid  # side of a patch
        if rng.random() < params.gray_probability:
            image = image.mean(axis=2, keepdims=True).astype(np.uint8).repeat(3, axis=2)
        middle = np.uint8(image.mean())
        shown = np.full((grid * side, grid * side, 3), middle, np.uint8)
        origins = rng.permutation(grid**2)
        for place, origin in enumerate(origins):
            row, column = divmod(int(origin), grid)
            patch = image[row * side : (row + 1) * side, column * side : (column + 1) * side].astype(np.int16)
            # Each patch gets its own brightness shift, so that shading across the view does not give its position away.
            patch = np.clip(patch + rng.integers(-16, 17), 0, 255)[gap : side - gap, gap : side - gap]
            row, column = divmod(place, grid)
            top, left = row * side + gap, column * side + gap
            shown[top : top + len(patch), left : left + patch.shape[1]] = patch
        return {"image": shown, "origins": origins.reshape(grid, grid)}

    def forward(self, views: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        *_, c5 = self.backbone(self.preprocessing(views["image"]))
        logits = self.classifier(self.average(c5)).float()  # (N, grid * grid, grid, grid)
        # Flattened, because the loss over a plane is not deterministic on GPUs.
        logits, origins = logits.permute(0, 2, 3, 1).flatten(0, 2), views["origins"].flatten()
        right = (logits.argmax(dim=1) == origins).float().mean()
        return F.cross_entropy(logits, origins), {"accuracy": right}
