"""What fine-tuning reads: images with masks to learn from, images without, and those that choose the weights."""

from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from pspnet.config.finetune import FinetuneParams, NoUnlabeledParams
from pspnet.dataset.annotated import AnnotatedImages
from pspnet.dataset.augmentation import Augmentation
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.dataset.training_samples import TrainingCrops
from pspnet.dataset.unlabeled_crops import UnlabeledCrops
from pspnet.errors import Problem, UserError
from pspnet.semisup import METHODS


class Rows(NamedTuple):
    """Rows of a prepared set's index. Only the masks of train and val are read."""

    train: pd.DataFrame
    unlabeled: pd.DataFrame
    val: pd.DataFrame

    @classmethod
    def of(cls, dataset: PreparedDataset) -> "Rows":
        """All that training may use. `unlabeled`: also images of train whose masks are missing or left out."""
        index = dataset.index()
        unlabeled = index["split"].isin(["train", "unlabeled"]) & ~index["has_mask"]
        return cls(dataset.annotated("train"), index[unlabeled], dataset.annotated("val"))


@dataclass(frozen=True)
class FinetuneData:
    """Train, which the network learns from, and val, which chooses the weights to keep."""

    train: TrainingCrops
    val: AnnotatedImages
    classes: tuple[str, ...]
    ignore: int
    unlabeled: UnlabeledCrops | None = None

    @classmethod
    def open(
        cls, dataset: PreparedDataset, rows: Rows, params: FinetuneParams, fill: tuple[int, int, int], seed: int
    ) -> "FinetuneData":
        size = params.crop_height_px, params.crop_width_px
        augmentation = Augmentation.from_params(params, *size, fill=fill, ignore=dataset.ignore)
        unlabeled = None
        if not isinstance(params.unlabeled, NoUnlabeledParams):
            views = METHODS[params.unlabeled.kind].strong_views
            if len(rows.unlabeled) < params.unlabeled.images_per_step:
                raise UserError(_too_few(len(rows.unlabeled), params.unlabeled.images_per_step))
            reader = dataset.reader()
            unlabeled = UnlabeledCrops(reader, rows.unlabeled, augmentation, params.unlabeled, views, seed)
        return cls(
            TrainingCrops(dataset.reader(), rows.train, augmentation, seed),
            AnnotatedImages(dataset.reader(), rows.val),
            dataset.classes,
            dataset.ignore,
            unlabeled,
        )


def _too_few(images: int, per_step: int) -> Problem:
    expected = f"at most {images}, the number of images without masks in train and unlabeled"
    fix = "Add images without masks (see `pspnet data add`), or use `unlabeled: {kind: none}`."
    return Problem("finetune.unlabeled.images_per_step", f"is {per_step}", expected, fix)
