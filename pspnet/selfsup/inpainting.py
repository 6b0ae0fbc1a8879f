"""Inpainting (Pathak et al., 2016): reconstruct hidden blocks from their surroundings."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pspnet.config.pretrain import InpaintingParams
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.backbone.resnet import ResNet
from pspnet.selfsup.pretext import Crop, Pictures, Pretext, Views


class Inpainting(Pretext[InpaintingParams]):
    def __init__(self, backbone: ResNet, preprocessing: Preprocessing, params: InpaintingParams) -> None:
        super().__init__(backbone, preprocessing, params)
        deepest = backbone.channels[-1]
        hidden = max(16, deepest // 4)
        self.reduce = nn.Sequential(
            nn.Conv2d(deepest, hidden, 3, padding=1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU(inplace=True)
        )
        self.paint = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(hidden, 3, 3, padding=1)
        )

    @staticmethod
    def views(crop: Crop, params: InpaintingParams, rng: np.random.Generator) -> Views:
        block, image = params.block_px, crop()
        side = len(image)
        blocks = -(-side // block)  # blocks per side; the last one may extend past the edge
        count = min(blocks**2 - 1, max(1, round(params.hidden_share * blocks**2)))
        hidden = np.zeros(blocks**2, bool)
        hidden[rng.choice(blocks**2, count, replace=False)] = True
        plane = hidden.reshape(blocks, blocks).repeat(block, axis=0).repeat(block, axis=1)
        return {"image": image, "hidden": plane[None, :side, :side]}

    def forward(self, views: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        images, hidden = self.preprocessing(views["image"]), views["hidden"]  # (N, 3, S, S), (N, 1, S, S)
        painted = self._paint(images, hidden)
        quarter = painted.shape[-2:]
        target = F.interpolate(images, quarter, mode="area")
        holes = F.interpolate(hidden.float(), quarter, mode="area")
        error = ((painted - target).abs() * holes).sum() / (3 * holes.sum())
        visible_error = ((painted - target).abs() * (1 - holes)).sum() / (3 * (1 - holes).sum())
        return error, {"visible_error": visible_error}

    def pictures(self, views: dict[str, Tensor]) -> Pictures:
        images, hidden = self.preprocessing(views["image"]), views["hidden"]
        painted = F.interpolate(self._paint(images, hidden), images.shape[-2:], mode="bilinear", align_corners=False)
        reconstructed = torch.where(hidden, painted, images)
        return {"shown": images.masked_fill(hidden, 0), "reconstructed": reconstructed, "original": images}

    def _paint(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Return the image at a quarter of its size, because mean colors and edges matter and grain does not."""
        *_, c5 = self.backbone(images.masked_fill(hidden, 0))  # after normalization, 0 is the mean color
        features = self.reduce(c5)
        quarter = (images.shape[-2] // 4, images.shape[-1] // 4)
        painted = self.paint(F.interpolate(features, quarter, mode="bilinear", align_corners=False))
        return painted.float()  # type: ignore[no-any-return]
