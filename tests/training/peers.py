"""Short training runs on images drawn here, shared by all processes that train together.

Checkpoints and records go to a folder for each case in OUT. BatchNorm's statistics are fixed, so that no result depends
on one process's batch. At the end, each process claims to have read a different checkpoint; the error message for that
is also in OUT.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pspnet.config.finetune import FinetuneParams, UnlabeledParams
from pspnet.dataset.annotated import Annotated, AnnotatedImages
from pspnet.dataset.training_samples import TrainingCrops
from pspnet.dataset.unlabeled_crops import UnlabeledCrops, drawn_box
from pspnet.errors import UserError
from pspnet.losses.segmentation import build_loss
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.device import configure
from pspnet.model.network import Architecture, PSPNet, SupervisedPSPNet
from pspnet.semisup import METHODS as OF_KIND
from pspnet.training.data import FinetuneData
from pspnet.training.finetune import finetune
from pspnet.training.shared.checkpoint import Checkpoint, Record
from pspnet.training.shared.distributed import Peers, joined
from pspnet.training.shared.loading import keys_of
from pspnet.training.shared.steps import Session
from tests.parameters import demo_params, unlabeled_params
from tests.training.trainings import quiet

IMAGES, BATCH, CLASSES, IGNORE = 16, 8, ("dark", "gray", "bright"), 255
RUNTIME = demo_params(runtime__threads=1).runtime
METHODS = ("mean_teacher", "unimatch", "unimatch in parts")
CASES = ("all annotated", "unequal", "one without any", "none at all", "in parts", *METHODS)


class Fixed(SupervisedPSPNet):
    def train(self, mode: bool = True) -> "Fixed":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


class Drawn(TrainingCrops):
    """Crops that have fewer annotated pixels in the first half of every batch, which goes to the first of two
    processes.
    """

    def __init__(self, case: str, seed: int) -> None:
        self._case = case
        steps = [keys_of(step, IMAGES, BATCH, seed) for step in range(2 * IMAGES // BATCH)]
        self._first_half = {key for keys in steps for key in keys[: BATCH // 2]}

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        rng = np.random.default_rng(key[1])
        image = torch.from_numpy(rng.integers(0, 256, (32, 40, 3), np.uint8))
        mask = (image[..., 0] // 86).clone()
        first = key in self._first_half
        if self._case == "none at all" or (self._case == "one without any" and first):
            mask[:] = IGNORE
        if self._case in ("unequal", "in parts") and first:
            mask[3:] = IGNORE
        return {"image": image, "mask": mask}


class DrawnWithoutMasks(UnlabeledCrops):
    """Half of the strong views get a box; a strip of the images is outside the picture."""

    def __init__(self, strong_views: int) -> None:
        self._strong_views = strong_views

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        rng = np.random.default_rng([*key, 1])
        sample = {"weak": rng.integers(0, 256, (32, 40, 3), np.uint8), "inside": np.ones((32, 40), bool)}
        sample["inside"][:, : rng.integers(8)] = False
        for number in range(self._strong_views):
            sample[f"strong_{number}"] = sample["weak"] // 2
            sample[f"box_{number}"] = drawn_box((32, 40), rng) & (rng.random() < 0.5)
        return {name: torch.from_numpy(array) for name, array in sample.items()}


class DrawnVal(AnnotatedImages):
    """Five validation images, which two processes cannot share evenly."""

    def __init__(self) -> None:
        rng = np.random.default_rng(99)
        self._images = [rng.integers(0, 256, (32, 40, 3), np.uint8) for _ in range(5)]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, position: int) -> Annotated:
        image = self._images[position]
        return Annotated(str(position), "", image, image[..., 0] // 86)


def parameters(**changes: Any) -> FinetuneParams:
    """Return params for two epochs of plain gradient descent, because AdamW would amplify the smallest difference."""
    return demo_params(
        finetune__epochs=2, finetune__batch_size=BATCH, finetune__crop_height_px=32, finetune__crop_width_px=40,
        finetune__optimizer__kind="sgd", finetune__optimizer__learning_rate=0.1, finetune__optimizer__warmup_steps=0,
        finetune__optimizer__gradient_clip_norm=1.0, finetune__dropout=0.0, finetune__ema_decay=0.9, **changes,
    ).finetune  # fmt: skip


def unlabeled_of(case: str) -> UnlabeledParams:
    """Without dropped features: each device drops others."""
    if case not in METHODS:
        return unlabeled_params("none")
    kind = case.removesuffix(" in parts")
    settings = {"confidence": 0.35, "warmup_share": 0.25, "ramp_share": 0.5, "decay": 0.5}
    dropout = {"feature_dropout": 0.0} if kind == "unimatch" else {}
    return unlabeled_params(kind, **settings, **dropout)


def train(case: str, folder: Path, peers: Peers, params: FinetuneParams) -> list[Record]:
    torch.manual_seed(0)
    supervised = Fixed(PSPNet(Architecture(18, 0.125, 8, len(CLASSES), dropout=0.0)))
    loss_of = build_loss(params.loss, CLASSES, [1, 1, 1], IGNORE, align_corners=False, device=peers.device)
    kind = params.unlabeled.kind
    without = None if kind == "none" else DrawnWithoutMasks(OF_KIND[kind].strong_views)
    training = finetune(
        supervised, Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        FinetuneData(Drawn(case, RUNTIME.seed), DrawnVal(), CLASSES, IGNORE, without), loss_of, params,
        Session(RUNTIME, peers, Checkpoint(folder, writes=peers.rank == 0), quiet),
    )  # fmt: skip
    return list(training)


def main(out: Path) -> None:
    """Train in one process, or in each of several processes that torchrun or a test has connected."""
    with joined(configure(RUNTIME)) as peers:
        for case in CASES:
            folder = out / case
            folder.mkdir(parents=True, exist_ok=True)
            parts = 2 if case.endswith("in parts") else 1
            params = parameters(
                finetune__optimizer__accumulation_steps=parts, finetune__unlabeled=unlabeled_of(case).model_dump()
            )
            records = train(case, folder, peers, params)
            (folder / f"records-{peers.rank}.json").write_text(json.dumps(records))
        try:
            peers.check_step(7 * peers.rank, Path("checkpoint"))
        except UserError as refusal:
            (out / f"refusal-{peers.rank}").write_text(str(refusal))
