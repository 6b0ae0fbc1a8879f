"""Pseudo labels: a teacher's confident predictions of a weak view, which the network learns on other views."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from pspnet.config.finetune import PseudoLabelParams
from pspnet.losses.likelihood import most_likely
from pspnet.model.averaging import move_average, start_average
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.backbone.resnet import Features
from pspnet.model.network import SupervisedPSPNet
from pspnet.semisup.collapse import check_collapse
from pspnet.semisup.method import Batch, Logits, Method

RUNNING = 0.99  # share of the running counts that each step keeps

PseudoParams = TypeVar("PseudoParams", bound=PseudoLabelParams)


class PseudoLabels(Method[PseudoParams]):
    """BatchNorm: the network normalizes images with and without masks together, in one pass in training mode, because
    the same weights must fit both. The teacher is in evaluation mode: it predicts as the finished network would, and
    no label depends on the other images of the batch. The auxiliary head learns from masks alone.
    """

    # Counts of pixels by class.
    running: Tensor  # (2, K): predicted; predicted with confidence. Older steps count less
    recent: Tensor  # (2, K): predicted; accepted, since the last record
    in_masks: Tensor  # (K)

    def __init__(
        self, supervised: SupervisedPSPNet, preprocessing: Preprocessing, params: PseudoParams, ignore: int
    ) -> None:
        super().__init__(supervised, preprocessing, params, ignore)
        self.teacher = start_average(supervised.network).eval()
        classes, device = supervised.network.architecture.classes, next(supervised.parameters()).device
        self.register_buffer("running", torch.zeros(2, classes, device=device))
        self.register_buffer("recent", torch.zeros(2, classes, dtype=torch.int64, device=device))
        self.register_buffer("in_masks", torch.zeros(classes, dtype=torch.int64, device=device))

    def forward(self, batch: Batch) -> Logits:
        network, shown = self.supervised.network, [name for name in self.streams if name in batch]
        sizes = [len(batch[name]) for name in ("image", *shown)]
        images = torch.cat([batch[name] for name in ("image", *shown)])
        features = network.backbone(self.preprocessing(images))
        main, *others = torch.split(network.coarse_logits(self.perturbed(features, sizes)), sizes)
        auxiliary = self.supervised.auxiliary_head(features[-2][: sizes[0]])
        return main, auxiliary, dict(zip(shown, others, strict=True))

    @property
    def images_per_step(self) -> int:
        return self.params.images_per_step

    def perturbed(self, features: Features, sizes: list[int]) -> Features:
        """The features for the head. `sizes`: the numbers of images with masks and of each stream, in order."""
        return features

    def first_step(self, steps: int) -> int:
        return round(self.params.warmup_share * steps)

    def weight_at(self, step: int, steps: int) -> float:
        done = (step + 1 - self.first_step(steps)) / max(1.0, self.params.ramp_share * steps)
        return self.params.weight * min(1.0, max(0.0, done))

    @torch.no_grad()
    def label(self, batch: Batch, sum_: Callable[[Tensor], Tensor]) -> Batch:
        """Adds `predicted`, the teacher's mask of the weak view, and `X_mask` for each stream X; exchanges boxes."""
        if "weak" not in batch:  # still warming up
            return batch
        logits = self.teacher.coarse_logits(self.teacher.backbone(self.preprocessing(batch["weak"])))
        height, width = batch["inside"].shape[1:]
        classes, probability = most_likely(logits, (height, width), self.teacher.architecture.align_corners)
        predicted = classes.masked_fill(~batch["inside"], self.ignore)
        accepted = predicted.masked_fill(probability < self.thresholds()[classes.int()], self.ignore)
        confident = predicted.masked_fill(probability < self.params.confidence, self.ignore)
        masks = (predicted, confident, accepted, batch["mask"])
        self._count(*sum_(torch.stack([self._pixels(mask) for mask in masks])))
        views = {"weak_mask": accepted}
        for number in range(self.strong_views):
            box = batch[f"box_{number}"]
            views[f"strong_{number}"] = mixed(batch[f"strong_{number}"], box[:, None])
            views[f"strong_{number}_mask"] = mixed(accepted, box)
        return {**batch, **views, "predicted": predicted}

    def thresholds(self) -> Tensor:
        """(K): the least probability of a pseudo label. Lower for classes that are rarely predicted with confidence."""
        predicted, confident = self.running
        shares = confident / predicted.clamp(min=1)
        best = shares.max()
        lacking = torch.where(best > 0, 1 - shares / best, 0)
        return self.params.confidence * (1 - self.params.class_balance * lacking)

    def _pixels(self, mask: Tensor) -> Tensor:
        """(K): the number of pixels of each class. The ignored value is no class."""
        return torch.bincount(mask.flatten(), minlength=self.ignore + 1)[: len(self.in_masks)]

    def _count(self, predicted: Tensor, confident: Tensor, accepted: Tensor, in_masks: Tensor) -> None:
        self.running.mul_(RUNNING).add_(torch.stack([predicted, confident]))
        self.recent += torch.stack([predicted, accepted])
        self.in_masks += in_masks

    @torch.no_grad()
    def after_step(self, step: int, spread: Callable[[Iterable[Tensor]], None]) -> None:
        move_average(self.teacher, self.supervised.network, self.params.decay, step)
        spread(self.teacher.buffers())  # on CPUs each process has the BatchNorm statistics of its own images

    def figures(self, classes: tuple[str, ...]) -> dict[str, float]:
        """For each class, the share of the pixels without masks that are accepted as this class."""
        predicted, accepted = self.recent.double()
        pixels = predicted.sum()
        self.recent.zero_()
        if not pixels:
            return {}
        return {f"accepted/{name}": share for name, share in zip(classes, (accepted / pixels).tolist(), strict=True)}

    def check(self, records: Sequence[Mapping[str, float]], classes: tuple[str, ...]) -> None:
        check_collapse(records, dict(zip(classes, self.in_masks.tolist(), strict=True)))


def mixed(own: Tensor, box: Tensor) -> Tensor:
    """CutMix (Yun et al., 2019): inside the box, the pixels of the partner. Images 0 and 1 are partners, 2 and 3, ...

    Pairs are never divided between devices or parts of a step.
    """
    partners = torch.arange(len(own), device=own.device) ^ 1
    return torch.where(box, own[partners], own)
