"""Prepared images with masks and a backbone -> the bundle, and the history of its training."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pspnet.config.backbone import BackboneParams
from pspnet.config.finetune import FinetuneParams
from pspnet.config.runtime import RuntimeParams
from pspnet.dataset.annotated import AnnotatedImages
from pspnet.dataset.prepared import PreparedDataset
from pspnet.dataset.samples import Split
from pspnet.dataset.segmentation import TrainingCrops
from pspnet.dataset.transforms import Augmentation
from pspnet.losses import build_loss
from pspnet.model.bundle import Bundle
from pspnet.model.digest import digest
from pspnet.model.network import Architecture, PSPNet, SupervisedPSPNet
from pspnet.model.pretrained import PretrainedBackbone
from pspnet.outputs import whole_file, whole_folder
from pspnet.process import rank, ranks
from pspnet.tracking.run import StageRun
from pspnet.training.checkpoint import open_checkpoint, training_digest
from pspnet.training.distributed import joined
from pspnet.training.finetune import finetune as train
from pspnet.training.runtime import configure, device_lock

SPLITS: tuple[Split, ...] = ("train", "val")


def run(
    backbone: BackboneParams,
    finetune: FinetuneParams,
    runtime: RuntimeParams,
    *,
    prepared: Path,
    pretrained: Path,
    out: Path,
    history: Path,
    checkpoints: Path,
    run: StageRun,
    tick: Callable[[int, int, str], None],
) -> None:
    dataset = PreparedDataset.open(prepared)
    start = PretrainedBackbone.open(pretrained)
    device = configure(runtime)
    torch.manual_seed(runtime.seed)
    architecture = Architecture(
        depth=backbone.depth,
        width=backbone.width,
        output_stride=finetune.output_stride,
        classes=len(dataset.classes),
        dropout=finetune.dropout,
        stem=backbone.stem,
        dilation=backbone.dilation,
        align_corners=finetune.align_corners,
        decoder=finetune.decoder,
        pyramid_weights=finetune.pyramid_weights,
    )
    supervised = SupervisedPSPNet(PSPNet(architecture))
    start.load_into(supervised.network.backbone, pretrained)
    augmentation = Augmentation(
        height_px=finetune.crop_height_px,
        width_px=finetune.crop_width_px,
        scale_min=finetune.scale_min,
        scale_max=finetune.scale_max,
        rotation_degrees=finetune.rotation_degrees,
        flip_probability=finetune.flip_probability,
        blur_probability=finetune.blur_probability,
        color_jitter=finetune.color_jitter,
        fill=start.preprocessing.mean_color,
        ignore=dataset.ignore,
    )
    crops = TrainingCrops(dataset.reader(), dataset.annotated("train"), augmentation, runtime.seed)
    val = AnnotatedImages(dataset.reader(), dataset.annotated("val"))
    pixels = dataset.class_pixels["train"]
    loss = build_loss(
        finetune.loss, dataset.classes, pixels, dataset.ignore, align_corners=finetune.align_corners, device=device
    )
    sections = {"backbone": backbone, "finetune": finetune, "runtime": runtime}
    fingerprints: dict[str, str] = {split: dataset.fingerprints[split] for split in SPLITS}
    backbone_digest = digest(pretrained)
    dependencies = {**fingerprints, "backbone": backbone_digest, "device": device.type, "devices": str(ranks())}
    key = training_digest("finetune", sections, dependencies)
    run.identify(training=key)
    for split in SPLITS:
        run.dataset(split, fingerprints[split], prepared, dataset.images[split])
    if finetune.loss.class_weights != "none":
        run.figures({"class_weight": loss.class_weights})
    with (
        device_lock(device),
        open_checkpoint(checkpoints, "finetune", key) as checkpoint,
        joined(device) as peers,
    ):
        training = train(
            supervised, start.preprocessing, crops, val, dataset.classes, dataset.ignore, loss,
            finetune, runtime, peers, checkpoint, tick,
        )  # fmt: skip
        records = pd.DataFrame(run.epochs(training))
    if rank() != 0:
        return
    bundle = Bundle(
        network=supervised.network,
        preprocessing=start.preprocessing,
        classes=dataset.classes,
        colors=dataset.colors,
        pretraining=start.pretraining,
        fingerprints=fingerprints,
        backbone_digest=backbone_digest,
    )
    with whole_file(history) as path:
        records.astype({"epoch": np.int64}).to_csv(path, index=False)
    with whole_folder(out) as folder:
        bundle.save(folder)
    run.headline({"val_mean_iou": records["val_mean_iou"].max()})
    run.artifacts(history)
