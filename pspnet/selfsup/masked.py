"""Masked modeling for convolutional networks, after SparK (Tian et al., 2023): paint the hidden patches of an image.

A convolution spreads visible features into hidden patches, so the mask would fade from layer to layer, and BatchNorm
would take the holes for features. SparK therefore computes nothing but visible features. Here the backbone does the
same while it is pretrained: BatchNorm sees only visible features, and hidden ones are 0 after the first pooling and
after each BatchNorm, hence also after each stage. On several GPUs, the statistics of visible features are synchronized
as usual.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pspnet.config.pretrain import MaskedParams
from pspnet.errors import Problem
from pspnet.model.backbone.normalization import BatchNorm
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.backbone.resnet import Features, ResNet
from pspnet.selfsup.pretext import Crop, Pictures, Pretext, Views

C2_STRIDE = 4
HARD_SHARE = 0.5  # of the hidden patches, with `select: hard`
# Added to the variance of a patch, so that noise in a patch without contrast is not its target: a deviation of 0.1,
# about 6 of 256 gray levels, counts half.
FLAT_VARIANCE = 0.01
SETTLED_STEPS = 500


class Masked(Pretext[MaskedParams]):
    def __init__(self, backbone: ResNet, preprocessing: Preprocessing, params: MaskedParams) -> None:
        super().__init__(backbone, preprocessing, params)
        self._patch_px, self._hidden_share = params.patch_px, params.hidden_share
        self._mask = Mask()
        _replace(backbone, nn.BatchNorm2d, lambda norm: OnlyVisible(norm, self._mask))
        _replace(backbone, nn.MaxPool2d, lambda pool: Covered(pool, self._mask))
        self.decoder = Decoder(backbone.channels, max(16, backbone.channels[-1] // 8))
        self.difficulty = Difficulty(params.patch_px) if params.select == "hard" else None

    @staticmethod
    def views(crop: Crop, params: MaskedParams, rng: np.random.Generator) -> Views:
        image = crop()
        patches = len(image) // params.patch_px
        return {"image": image, "order": rng.permutation(patches**2).reshape(patches, patches)}

    def forward(self, views: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        images = self.preprocessing(views["image"])  # (N, 3, S, S)
        guessed = None if self.difficulty is None else self.difficulty(images)
        hidden = self._hide(views["order"], guessed)
        mean, deviation = self._statistics(images)
        target = (images - mean) / deviation
        error = self._by_patch((self._paint(images) - target).abs())
        loss, flat_loss = (_mean(one, hidden) for one in (error, self._by_patch(target.abs())))
        figures = {"flat_loss": flat_loss}  # the loss of painting every patch in its mean color
        if guessed is not None:
            miss = _mean((guessed - error.detach()).abs(), hidden)
            loss = loss + miss - miss.detach()  # trains the guesses, and leaves the value of the loss
            figures["difficulty_error"] = miss
        return loss, figures

    def pictures(self, views: dict[str, Tensor]) -> Pictures:
        images = self.preprocessing(views["image"])
        hidden = self._hide(views["order"], None if self.difficulty is None else self.difficulty(images))
        holes = _enlarge(hidden[:, None].float(), images).bool()
        mean, deviation = self._statistics(images)
        reconstructed = torch.where(holes, self._paint(images) * deviation + mean, images)
        shown = images.masked_fill(holes, 0)
        return {"shown": shown, "reconstructed": reconstructed, "original": images}

    def trained_backbone(self) -> ResNet:
        backbone = copy.deepcopy(self.backbone)
        _replace(backbone, Covered, lambda covered: covered.inner)
        return backbone

    def collapse(self, records: Sequence[Mapping[str, float]]) -> Problem | None:
        last = records[-1]
        if last["step"] < SETTLED_STEPS or last["loss"] < last["flat_loss"]:
            return None
        return Problem(
            "pretrain.method: masked",
            f"the loss is {last['loss']:.4f} after {last['step']:.0f} steps, no less than if every hidden patch were "
            f"painted in its mean color ({last['flat_loss']:.4f}), so the backbone has learned nothing",
            f"less after {SETTLED_STEPS} steps",
            "Change pretrain.optimizer.learning_rate, or lower method.patch_px or method.hidden_share, so that hidden "
            "patches can be guessed from visible ones. If they cannot, as in images of noise, choose another method.",
        )

    def _hide(self, order: Tensor, guessed: Tensor | None) -> Tensor:
        """Hide patches from the backbone, and return (N, g, g), True where hidden. `order` ranks them at random."""
        ranks = order.flatten(1)
        count = min(ranks.shape[1] - 1, max(1, round(self._hidden_share * ranks.shape[1])))
        if guessed is not None:  # the hardest come first
            hardest = guessed.detach().flatten(1).argsort(dim=1, descending=True, stable=True)
            ranks = ranks.scatter(1, hardest[:, : round(HARD_SHARE * count)], -1)
        chosen = ranks.argsort(dim=1, stable=True)[:, :count]
        hidden = torch.zeros_like(ranks, dtype=torch.bool).scatter(1, chosen, value=True).view_as(order)
        self._mask.show(~hidden, ranks.shape[1] - count)
        return hidden

    def _paint(self, images: Tensor) -> Tensor:
        """Return the images as the network paints them, each patch with about zero mean and unit variance."""
        features = self.backbone(images * self._mask.at(images))
        return self.decoder(features, self._mask).float()  # type: ignore[no-any-return]

    def _statistics(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation of each patch, over its pixels and colors: (N, 1, S, S)."""
        mean = self._by_patch(images)
        variance = self._by_patch(images.square()) - mean.square()
        return _enlarge(mean[:, None], images), _enlarge((variance + FLAT_VARIANCE).sqrt()[:, None], images)

    def _by_patch(self, images: Tensor) -> Tensor:  # (N, C, S, S) -> (N, g, g)
        return F.avg_pool2d(images, self._patch_px).mean(dim=1)


class Mask:
    """The visible patches of the images that are in the backbone."""

    def show(self, visible: Tensor, count: int) -> None:
        """`visible` is (N, g, g), with `count` visible patches in each image."""
        self._visible, self._count = visible, count

    def at(self, x: Tensor) -> Tensor:
        """(N, 1, h, w) for features or images (N, C, h, w): 1 where visible."""
        return _enlarge(self._visible[:, None].to(x.dtype), x)

    def rows(self, x: Tensor) -> Tensor:
        """Return the positions of the visible features among the N * h * w of `x`, without waiting for the GPU."""
        visible = self.at(x).flatten(1)
        per_patch = visible.shape[1] // self._visible[0].numel()
        own = visible.argsort(dim=1, descending=True, stable=True)[:, : self._count * per_patch]
        starts = torch.arange(len(visible), device=x.device)[:, None] * visible.shape[1]
        return (own + starts).flatten()


class Covered(nn.Module):
    """Set the output of `inner` to 0 where it is hidden."""

    def __init__(self, inner: nn.Module, mask: Mask) -> None:
        super().__init__()
        self.inner, self._mask = inner, mask

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.inner(x)
        return output * self._mask.at(output)


class OnlyVisible(Covered):
    """Apply a BatchNorm to the visible features alone. The others become 0."""

    def forward(self, x: Tensor) -> Tensor:
        features = x.permute(0, 2, 3, 1)  # (N, h, w, C)
        rows = self._mask.rows(x)
        # One feature per image. As a single image, the features and their gradient could have different layouts, which
        # torch's backward pass mistakes for each other.
        normal: Tensor = self.inner(features.flatten(0, 2)[rows][:, :, None, None])[:, :, 0, 0]
        every = normal.new_zeros(features.shape).flatten(0, 2).index_copy(0, rows, normal)
        return every.view(features.shape).permute(0, 3, 1, 2)


class Decoder(nn.Module):
    """Paint from C2 to C5. A learned feature stands for the hidden ones at each resolution."""

    def __init__(self, channels: Sequence[int], hidden: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(inputs, hidden, 1) for inputs in channels)
        self.missing = nn.Parameter(torch.zeros(len(channels), hidden))
        self.joins = nn.ModuleList(
            nn.Sequential(nn.Conv2d(hidden, hidden, 3, padding=1, bias=False), BatchNorm(hidden), nn.ReLU(inplace=True))
            for _ in channels
        )
        self.paint = nn.Conv2d(hidden, 3 * C2_STRIDE**2, 1)

    def forward(self, features: Features, mask: Mask) -> Tensor:  # -> (N, 3, H, W)
        x: Tensor | None = None
        for own, lateral, missing, join in reversed(
            list(zip(features, self.laterals, self.missing, self.joins, strict=True))
        ):
            dense = torch.where(mask.at(own).bool(), lateral(own), missing[:, None, None])
            if x is not None:
                dense = dense + F.interpolate(x, own.shape[-2:], mode="bilinear", align_corners=False)
            x = join(dense)
        return F.pixel_shuffle(self.paint(x), C2_STRIDE)


class Difficulty(nn.Module):
    """Guess the loss of each patch from its pixels. The losses of hidden patches train it, so its weights remember what
    was hard lately.
    """

    def __init__(self, patch_px: int) -> None:
        super().__init__()
        self.guess = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 16, 3, 2, padding=1),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(patch_px // 4),
            nn.Conv2d(16, 1, 1),
        )

    def forward(self, images: Tensor) -> Tensor:  # (N, 3, S, S) -> (N, g, g)
        guesses: Tensor = self.guess(images)[:, 0]
        return guesses.float()


def _replace(root: nn.Module, kind: type[nn.Module], change: Callable[[Any], nn.Module]) -> None:
    for parent in list(root.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, kind):
                setattr(parent, name, change(child))


def _enlarge(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="nearest")


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).sum() / where.sum()
