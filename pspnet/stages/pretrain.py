"""Prepared images -> a backbone that has learnt from them without masks, and the history of its training."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from pspnet.config.backbone import BackboneParams
from pspnet.config.pretrain import PretrainParams
from pspnet.config.runtime import RuntimeParams
from pspnet.dataset.prepared import PreparedDataset
from pspnet.dataset.samples import Split
from pspnet.dataset.transforms import Augmentation
from pspnet.dataset.views import UnlabelledViews
from pspnet.model.preprocessing import Preprocessing
from pspnet.model.pretrained import PretrainedBackbone, random_backbone
from pspnet.outputs import whole_file, whole_folder
from pspnet.selfsup import METHODS
from pspnet.tracking.run import StageRun
from pspnet.training.checkpoint import open_checkpoint, training_digest
from pspnet.training.pretrain import pretrain as train
from pspnet.training.runtime import configure, device_lock

SPLITS: tuple[Split, ...] = ("train", "unlabeled")  # never val or test


def run(
    backbone: BackboneParams,
    pretrain: PretrainParams,
    runtime: RuntimeParams,
    *,
    prepared: Path,
    out: Path,
    history: Path,
    checkpoints: Path,
    run: StageRun,
    tick: Callable[[int, int, str], None],
) -> None:
    dataset = PreparedDataset.open(prepared)
    preprocessing = Preprocessing(dataset.mean, dataset.std)
    fingerprints: dict[str, str] = {split: dataset.fingerprints[split] for split in SPLITS}
    facts = PretrainedBackbone(pretrain.method, backbone.depth, backbone.width, preprocessing, fingerprints)
    device = configure(runtime)
    sections = {"backbone": backbone, "pretrain": pretrain, "runtime": runtime}
    digest = training_digest(sections, {**fingerprints, "device": device.type})
    run.identify(training=digest)
    for split in SPLITS:
        run.dataset(split, fingerprints[split], prepared, dataset.images[split])
    records = pd.DataFrame(columns=["epoch", "loss"])
    network = None
    if pretrain.method != "none":
        network = random_backbone(backbone.depth, backbone.width, pretrain.output_stride, runtime.seed)
        method = METHODS[pretrain.method]
        index = dataset.index()
        augmentation = Augmentation(
            height_px=pretrain.crop_px,
            width_px=pretrain.crop_px,
            scale_min=pretrain.scale_min,
            scale_max=pretrain.scale_max,
            flip_probability=pretrain.flip_probability,
            color_jitter=pretrain.color_jitter,
            fill=preprocessing.mean_color,
            ignore=dataset.ignore,
        )
        views = UnlabelledViews(
            dataset.reader(), index[index["split"].isin(SPLITS)], augmentation, method.views, pretrain, runtime.seed
        )
        with device_lock(device), open_checkpoint(checkpoints, "pretrain", digest) as checkpoint:
            pretext = method(network, preprocessing, pretrain)
            training = train(pretext, views, pretrain, runtime, device, checkpoint, tick)
            records = pd.DataFrame(run.epochs(training))
    with whole_file(history) as path:
        records.astype({"epoch": np.int64}).to_csv(path, index=False)
    with whole_folder(out) as folder:
        facts.save(network, folder)
    run.artifacts(history)
