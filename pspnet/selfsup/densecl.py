"""Dense contrastive learning (Wang et al., 2021): tell images apart, and places within them.

Two views of an image should look alike to the network and different from earlier images: as a whole, and place by
place, where each place of one view is compared with the place of the other whose features are most alike. A second
network, a moving average of the first, computes what the first is compared with, so the queue stays consistent. An
image is never told apart from earlier views of itself, of which there are many in the queue if there are few images.

Two things differ from the original, so that small batches and short runs work:
- The second network normalizes by averaged BatchNorm statistics, not by those of the batch (Cai et al., 2021).
  Otherwise the images of a small batch would give each other away, which the original prevents by shuffling over GPUs.
- Embeddings end with a BatchNorm without scale and shift. Otherwise they all drift in the same direction at first, and
  the network tells an image from earlier ones by their age.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from pspnet.config.pretrain import DenseCLParams
from pspnet.errors import Problem
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.backbone.pyramid import AverageBins
from pspnet.model.backbone.resnet import ResNet
from pspnet.selfsup.pretext import Crop, Pretext, Views

DIMENSIONS = 128
TEMPERATURE = 0.2
DENSE_WEIGHT = 0.5
LEAST_SPREAD, SETTLED_STEPS = 0.3, 200


class Encoder(nn.Module):
    """Embeds a view as a whole, and each of its places."""

    def __init__(self, channels: int, grid: int) -> None:
        super().__init__()
        self.average = AverageBins(grid)
        self.whole = nn.Sequential(
            nn.Linear(channels, channels),
            nn.ReLU(inplace=True),
            nn.Linear(channels, DIMENSIONS),
            nn.BatchNorm1d(DIMENSIONS, affine=False),
        )
        self.places = nn.Sequential(
            nn.Conv2d(channels, channels, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, DIMENSIONS, 1),
            nn.BatchNorm2d(DIMENSIONS, affine=False),
        )

    def forward(self, c5: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, C, h, w) -> (N, D), (N, places, D) and the features of the places, (N, places, C), all of length 1."""
        cells = self.average(c5)
        each = (self.whole(c5.mean(dim=(2, 3))), *(x.flatten(2).mT for x in (self.places(cells), cells)))
        whole, places, features = (F.normalize(x.float(), dim=-1) for x in each)
        return whole, places, features


class DenseCL(Pretext[DenseCLParams]):
    queue: Tensor
    places_queue: Tensor
    positions_queue: Tensor
    steps: Tensor
    spread: Tensor

    def __init__(self, backbone: ResNet, preprocessing: Preprocessing, params: DenseCLParams) -> None:
        super().__init__(backbone, preprocessing, params)
        self._momentum = params.momentum
        self.encoder = Encoder(backbone.channels[-1], params.grid)
        self.second_backbone, self.second_encoder = (
            copy.deepcopy(module).requires_grad_(False) for module in (backbone, self.encoder)
        )
        for name in ("queue", "places_queue"):  # oldest first
            self.register_buffer(name, F.normalize(torch.randn(params.queue_size, DIMENSIONS), dim=1))
        self.register_buffer("positions_queue", torch.full((params.queue_size,), -1))  # of the images in the dataset
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("spread", torch.ones(()))
        self._new: list[tuple[Tensor, Tensor, Tensor]] = []  # what the parts of the step add to the queues

    @staticmethod
    def views(crop: Crop, params: DenseCLParams, rng: np.random.Generator) -> Views:
        one, other = (_gray(crop()) if rng.random() < params.gray_probability else crop() for _ in range(2))
        return {"image": one, "other": other}

    def train(self, mode: bool = True) -> "DenseCL":
        super().train(mode)
        self.second_backbone.eval()
        self.second_encoder.eval()
        return self

    def forward(self, views: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        *_, c5 = self.backbone(self.preprocessing(views["image"]))
        whole, places, features = self.encoder(c5)
        with torch.no_grad():
            *_, c5 = self.second_backbone(self.preprocessing(views["other"]))
            other_whole, other_places, other_features = self.second_encoder(c5)
            if self.training:
                self._new.append((other_whole, F.normalize(other_places.mean(dim=1), dim=1), views["position"]))
        with torch.autocast(whole.device.type, enabled=False):
            alike = (features.detach() @ other_features.mT).argmax(dim=2)  # (N, places)
            matches = other_places.gather(1, alike[:, :, None].expand_as(other_places))
            # The queue starts with random directions. Telling images from those would only teach that all images are
            # alike.
            spared = (views["position"][:, None] == self.positions_queue) | (self.positions_queue < 0)  # (N, Q)
            whole_loss = contrast(whole, other_whole, self.queue, spared)
            of_places = spared.repeat_interleave(places.shape[1], dim=0)
            dense_loss = contrast(places.flatten(0, 1), matches.flatten(0, 1), self.places_queue, of_places)
        loss = (1 - DENSE_WEIGHT) * whole_loss + DENSE_WEIGHT * dense_loss
        return loss, {"whole_loss": whole_loss, "dense_loss": dense_loss, "spread": self.spread}

    @torch.no_grad()
    def after_step(self) -> None:
        self.steps += 1
        # In the first steps, the average keeps less of the past, so that its BatchNorm statistics become usable soon.
        kept = min(self._momentum, (1 + self.steps.item()) / (10 + self.steps.item()))
        for held, now in self._pairs():
            if held.is_floating_point():
                held.lerp_(now, 1 - kept)
            else:
                held.copy_(now)
        new = [_of_all_devices(torch.cat(parts)) for parts in zip(*self._new, strict=True)]
        self._new = []
        for queue, rows in zip((self.queue, self.places_queue, self.positions_queue), new, strict=True):
            queue.copy_(torch.cat([queue, rows])[-len(queue) :])
        # The standard deviation of the step's embeddings, relative to that of random directions.
        self.spread.copy_(new[0].var(dim=0).mean().sqrt() * DIMENSIONS**0.5)

    def collapse(self, records: Sequence[Mapping[str, float]]) -> Problem | None:
        last = records[-1]
        if last["step"] < SETTLED_STEPS or last["spread"] >= LEAST_SPREAD:
            return None
        return Problem(
            "pretrain.method: densecl",
            f"the spread of the embeddings is {last['spread']:.3f} after {last['step']:.0f} steps, so the network sees "
            "nearly the same in all images",
            f"about 1, and at least {LEAST_SPREAD} after {SETTLED_STEPS} steps",
            "Such a backbone is of no use. Lower pretrain.optimizer.learning_rate or raise its warmup_steps, or set "
            "pretrain.method.momentum closer to 1.",
        )

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each tensor of the second network with that of the first."""
        for second, first in ((self.second_backbone, self.backbone), (self.second_encoder, self.encoder)):
            yield from zip(second.state_dict().values(), first.state_dict().values(), strict=True)


def contrast(embeddings: Tensor, matches: Tensor, others: Tensor, spared: Tensor) -> Tensor:
    """Return the cross-entropy of choosing the match among the others, (M, D), (M, D) and (Q, D). `spared` is (M, Q),
    True where another does not count.
    """
    right = (embeddings * matches).sum(dim=1, keepdim=True)
    wrong = (embeddings @ others.T).masked_fill(spared, -torch.inf)
    logits = torch.cat([right, wrong], dim=1) / TEMPERATURE
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))


def _of_all_devices(own: Tensor) -> Tensor:
    """Return the rows of the whole step, in the order of its images."""
    if not distributed.is_initialized():
        return own
    parts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, own)
    return torch.cat(parts)


def _gray(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    gray: NDArray[np.uint8] = image.mean(axis=2, keepdims=True).astype(np.uint8)
    return gray.repeat(3, axis=2)
