"""One training of a study: a backbone without masks, or a network on some of the masks. Calls the two loops."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from pspnet.config.params import Params
from pspnet.dataset.annotated import AnnotatedImages
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.dataset.store.splits import Split
from pspnet.evaluation.measuring import measure
from pspnet.losses.segmentation import build_loss
from pspnet.metrics import Confusion
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.backbone.resnet import OutputStride, ResNet
from pspnet.model.backbone.starting import starting_backbone
from pspnet.model.device import configure
from pspnet.prediction.image.predictor import Member, Predictor
from pspnet.prediction.image.protocol import PredictionProtocol
from pspnet.selfsup import METHODS
from pspnet.study.subsets import filling, labeling_order
from pspnet.tracking.run import StageRun
from pspnet.training.data import FinetuneData, Rows
from pspnet.training.finetune import build_network, finetune
from pspnet.training.pretrain import open_views, pretrain
from pspnet.training.shared.checkpoint import Record
from pspnet.training.shared.distributed import Tick
from pspnet.training.shared.steps import open_session

PRETRAINED_ON: tuple[Split, ...] = ("train", "unlabeled")  # never val or test


@dataclass(frozen=True)
class Material:
    """What every training of a study starts from."""

    dataset: PreparedDataset
    imported: Path  # the weights of backbone.weights: imported

    def start(self, params: Params, output_stride: OutputStride | None = None) -> tuple[ResNet, Preprocessing]:
        """Return the backbone with the weights that `backbone.weights` specifies."""
        stride = output_stride or params.finetune.output_stride
        of_dataset = Preprocessing(self.dataset.mean, self.dataset.std)
        seed = params.runtime.seed
        network, _, preprocessing = starting_backbone(params.backbone, stride, seed, self.imported, of_dataset)
        return network, preprocessing

    def rows(self, masks: int, seed: int, batch_size: int) -> Rows:
        """Use the first `masks` of the seed's order. The other images of train count as images without a mask."""
        own = Rows.of(self.dataset)
        order = labeling_order(own.train, seed)
        labeled, others = order.head(masks), pd.concat([order.iloc[masks:], own.unlabeled])
        # With every image labeled, those images are also the ones to use without their masks.
        return Rows(filling(labeled, batch_size), others if len(others) else labeled, own.val)


def with_steps(params: Params, steps: int, images: int) -> Params:
    """Return params for exactly `steps` steps on this many images. Val is measured once, at the end.

    The weights that count are the last ones, averaged over the last steps in every arm, even if params.yaml keeps no
    average: otherwise a method with a teacher would differ in that too.
    """
    own = params.finetune
    per_epoch = images // own.batch_size
    decay = own.ema_decay or round(min(0.999, max(0.9, 1 - 10 / steps)), 4)
    changes = {"epochs": steps / per_epoch, "validations": 1, "patience_validations": 0, "ema_decay": decay}
    return params.model_copy(update={"finetune": own.model_copy(update=changes)})


def train_backbone(material: Material, params: Params, checkpoints: Path, key: str, tick: Tick) -> ResNet:
    """Pretrain the backbone with `pretrain.method`."""
    device, own = configure(params.runtime), params.pretrain
    network, preprocessing = material.start(params, own.output_stride)
    method = METHODS[own.method.kind]
    fill, seed = preprocessing.mean_color, params.runtime.seed
    views = open_views(material.dataset, PRETRAINED_ON, method, own, fill, seed)
    pretext = method(network, preprocessing, own.method)
    with open_session("pretrain", key, checkpoints, params.runtime, device, tick) as session:
        for _ in pretrain(pretext, views, own, session):
            pass
    return pretext.trained_backbone().cpu()


def train_network(
    material: Material,
    params: Params,
    rows: Rows,
    backbone: nn.Module | None,
    checkpoints: Path,
    key: str,
    tick: Tick,
    run: StageRun,
) -> tuple[Record, Predictor]:
    """Fine-tune on `rows`; returns the last record, and the trained network as a predictor."""
    device, own, dataset = configure(params.runtime), params.finetune, material.dataset
    supervised = build_network(params.backbone, own, len(dataset.classes), params.runtime.seed)
    start, preprocessing = material.start(params)
    supervised.network.backbone.load_state_dict((backbone or start).state_dict())
    data = FinetuneData.open(dataset, rows, own, preprocessing.mean_color, params.runtime.seed)
    pixels = class_pixels(dataset, rows.train)
    loss_of = build_loss(own.loss, dataset.classes, pixels, dataset.ignore, own.align_corners, device)
    with open_session("finetune", key, checkpoints, params.runtime, device, tick) as session:
        *_, last = run.epochs(finetune(supervised, preprocessing, data, loss_of, own, session))
    protocol = PredictionProtocol(**params.predict.model_dump())
    member = Member(supervised.network, preprocessing)
    return dict(last), Predictor([member], protocol, device, params.runtime.precision)


def measure_on_test(material: Material, predictor: Predictor, tick: Tick) -> Confusion:
    dataset = material.dataset
    images = AnnotatedImages(dataset.reader(), dataset.annotated("test"))
    return measure(predictor, images, dataset.classes, dataset.ignore, lambda done: tick(done, len(images), "test"))[0]


def class_pixels(dataset: PreparedDataset, rows: pd.DataFrame) -> list[int]:
    """Count the pixels of each class in the masks of these rows. A run must not know the masks that it may not use."""
    reader, counts = dataset.reader(), np.zeros(256, np.int64)
    for shard, row in rows[["shard", "row"]].itertuples(index=False):
        counts += np.bincount(reader.mask(shard, row).ravel(), minlength=256)
    own: list[int] = counts[: len(dataset.classes)].tolist()
    return own


def shuffled(backbone: ResNet, seed: int) -> ResNet:
    """Shuffle the values within each tensor: this keeps the scale of trained weights without what they have learned."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in backbone.state_dict().values():
            order = torch.randperm(tensor.numel(), generator=generator)
            tensor.copy_(tensor.flatten()[order].view_as(tensor))
    return backbone
