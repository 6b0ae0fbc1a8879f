"""A linear probe: how well do frozen features tell the classes apart?

The backbone is not trained. A linear classifier learns the classes from its deepest features on train, and its mean IoU
is measured on val. That takes seconds, because each image passes through the backbone once. Large images are
represented by their centers, and large splits by a part of their images.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from pspnet.config.backbone import BackboneParams
from pspnet.dataset.annotated import AnnotatedImages
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.dataset.store.splits import Split, stable_uniform
from pspnet.metrics import class_iou, confusion_matrix, mean_over_classes
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.backbone.pretrained import random_backbone
from pspnet.model.backbone.resnet import OutputStride, ResNet

IMAGES, CENTER_PX = 200, 320  # of each split at most; sides of their centers
STATISTICS_IMAGES = 50
FEATURES = 50_000  # that the classifier learns from
ITERATIONS, WEIGHT_DECAY = 100, 1e-3
CLEAR = 0.01  # a smaller difference in mean IoU is no difference

Tick = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class Probe:
    weights: str  # what was probed
    classes: tuple[str, ...]
    class_iou: NDArray[np.float64]

    @property
    def mean_iou(self) -> float:
        return float(mean_over_classes(self.class_iou))


def compare_with_random(
    trained: ResNet,
    preprocessing: Preprocessing,
    weights: str,
    dataset: PreparedDataset,
    params: BackboneParams,
    output_stride: OutputStride,
    seed: int,
    device: torch.device,
    tick: Tick = lambda done, total, note: None,
) -> list[Probe]:
    """Return the probes of the trained backbone and of one with random weights, or none without masks to learn and to
    measure.
    """
    if dataset.masks["train"] == 0 or dataset.masks["val"] == 0:
        return []
    random = random_backbone(params.depth, params.width, output_stride, seed, params.stem, params.dilation)
    of_dataset = Preprocessing(dataset.mean, dataset.std)
    return [
        probe(trained, preprocessing, weights, dataset, device, tick),
        probe(random, of_dataset, "random weights", dataset, device, tick),
    ]


def in_words(probes: list[Probe]) -> str:
    """Return the comparison as a sentence."""
    trained, random = (one.mean_iou for one in probes)
    gain = trained - random
    how = "about as well as" if abs(gain) < CLEAR else "better than" if gain > 0 else "worse than"
    return (
        f"A linear classifier on the frozen features tells the classes of val apart {how} one on the features of "
        f"random weights: mIoU {trained:.3f} against {random:.3f}."
    )


@torch.no_grad()
def probe(
    backbone: ResNet,
    preprocessing: Preprocessing,
    weights: str,
    dataset: PreparedDataset,
    device: torch.device,
    tick: Tick,
) -> Probe:
    train, val = (_Centers(dataset, split) for split in ("train", "val"))
    frozen = _Frozen(backbone, preprocessing, train, device)
    classes, total = len(dataset.classes), len(train) + len(val)
    rows, shares = [], []
    for number, (image, mask) in enumerate(train):
        features = frozen(image)
        share = _class_shares(mask, classes, features)
        chosen = _chosen(share, FEATURES // len(train), number)
        rows.append(features.flatten(1).T[chosen])
        shares.append(share[chosen])
        tick(number + 1, total, weights)
    classify = _fitted(torch.cat(rows), torch.cat(shares))
    confusion = np.zeros((classes, classes), np.int64)
    for number, (image, mask) in enumerate(val, start=len(train)):
        features = frozen(image)
        logits = classify(features.flatten(1).T).T.reshape(1, classes, *features.shape[1:])
        enlarged = F.interpolate(logits, mask.shape, mode="bilinear", align_corners=False)
        prediction = enlarged[0].argmax(dim=0).to(torch.uint8).cpu().numpy()
        confusion += confusion_matrix(mask, prediction, classes, dataset.ignore)
        tick(number + 1, total, weights)
    return Probe(weights, dataset.classes, class_iou(confusion))


class _Centers:
    """The centers of a split's images and masks. The same data always gives the same images."""

    def __init__(self, dataset: PreparedDataset, split: Split) -> None:
        rows: pd.DataFrame = dataset.annotated(split)
        chosen = sorted(rows["id"], key=stable_uniform)[:IMAGES]
        self._images = AnnotatedImages(dataset.reader(), rows[rows["id"].isin(chosen)])

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, position: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        sample = self._images[position]
        top, left = (max(0, (side - CENTER_PX) // 2) for side in sample.mask.shape)
        center = np.s_[top : top + CENTER_PX, left : left + CENTER_PX]
        return sample.image[center], sample.mask[center]

    def __iter__(self) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
        return (self[position] for position in range(len(self)))


class _Frozen:
    """A copy of the backbone whose BatchNorm statistics are those of these images.

    Self-supervised methods hide or shuffle parts of images, and random weights have no statistics at all.
    """

    def __init__(self, backbone: ResNet, preprocessing: Preprocessing, images: _Centers, device: torch.device) -> None:
        self._backbone, self._preprocessing, self._device = copy.deepcopy(backbone).to(device), preprocessing, device
        for module in self._backbone.modules():
            if isinstance(module, _BatchNorm):
                module.reset_running_stats()
                module.momentum = None  # so the statistics become means over the images
        self._backbone.train()
        for position in range(min(STATISTICS_IMAGES, len(images))):
            self(images[position][0])
        self._backbone.eval()

    def __call__(self, image: NDArray[np.uint8]) -> Tensor:  # (H, W, 3) -> (C, h, w)
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].to(self._device)
        *_, c5 = self._backbone(self._preprocessing(pixels))
        return c5[0]  # type: ignore[no-any-return]


def _class_shares(mask: NDArray[np.uint8], classes: int, features: Tensor) -> Tensor:
    """Return the share of each class in the area of each feature: (h * w, K). Ignored pixels have no class."""
    pixels = torch.from_numpy(np.ascontiguousarray(mask)).to(features.device)
    of_class = (pixels == torch.arange(classes, device=features.device)[:, None, None]).float()
    return F.interpolate(of_class[None], features.shape[1:], mode="area")[0].flatten(1).T


def _chosen(shares: Tensor, most: int, number: int) -> Tensor:
    """Return the indices of at most `most` random features with a class."""
    annotated = shares.sum(dim=1).nonzero()[:, 0].cpu().numpy()
    return torch.from_numpy(np.random.default_rng(number).permutation(annotated)[: max(1, most)]).to(shares.device)


def _fitted(features: Tensor, shares: Tensor) -> Callable[[Tensor], Tensor]:
    """Fit a linear classifier, (M, C) and (M, K), and return it as a function from features to logits."""
    mean, deviation = features.mean(dim=0), features.std(dim=0) + 1e-6
    known = (features - mean) / deviation
    weight = features.new_zeros(features.shape[1], shares.shape[1], requires_grad=True)
    bias = features.new_zeros(shares.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        likelihood = F.log_softmax(known @ weight + bias, dim=1)
        value = -(shares * likelihood).sum() / shares.sum() + WEIGHT_DECAY * weight.square().sum()
        torch.autograd.backward(value)
        return value.detach()

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    return lambda rows: ((rows - mean) / deviation) @ weight + bias
