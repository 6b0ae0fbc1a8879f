"""The finetune stage: from prepared images and a backbone to a bundle, with its training history."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from pspnet.config.backbone import BackboneParams
from pspnet.config.finetune import FinetuneParams
from pspnet.config.runtime import RuntimeParams
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.dataset.store.splits import Split
from pspnet.losses.segmentation import build_loss
from pspnet.machine.outputs import whole_file, whole_folder
from pspnet.machine.process import rank
from pspnet.model.backbone.digest import digest
from pspnet.model.backbone.pretrained import PretrainedBackbone
from pspnet.model.bundle import Bundle
from pspnet.model.device import configure
from pspnet.tracking.run import StageRun
from pspnet.training.data import FinetuneData, Rows
from pspnet.training.finetune import build_network
from pspnet.training.finetune import finetune as train
from pspnet.training.shared.checkpoint import training_digest
from pspnet.training.shared.steps import open_session

SPLITS: tuple[Split, ...] = ("train", "val")  # never test


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
    supervised = build_network(backbone, finetune, len(dataset.classes), runtime.seed)
    start.load_into(supervised.network.backbone, pretrained)
    data = FinetuneData.open(dataset, Rows.of(dataset), finetune, start.preprocessing.mean_color, runtime.seed)
    loss = build_loss(
        finetune.loss, dataset.classes, dataset.class_pixels["train"], dataset.ignore, finetune.align_corners, device
    )
    sections = {"backbone": backbone, "finetune": finetune, "runtime": runtime}
    used = SPLITS if data.unlabeled is None else (*SPLITS, "unlabeled")
    fingerprints: dict[str, str] = {split: dataset.fingerprints[split] for split in used}
    backbone_digest = digest(pretrained)
    key = training_digest("finetune", sections, {**fingerprints, "backbone": backbone_digest}, device)
    run.identify(training=key)
    for split in used:
        run.dataset(split, fingerprints[split], prepared, dataset.images[split])
    if finetune.loss.class_weights != "none":
        run.figures({"class_weight": loss.class_weights})
    with open_session("finetune", key, checkpoints, runtime, device, tick) as session:
        training = train(supervised, start.preprocessing, data, loss, finetune, session)
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
        records.astype({"step": np.int64}).to_csv(path, index=False)
    with whole_folder(out) as folder:
        bundle.save(folder)
    run.headline({"val_mean_iou": records["val_mean_iou"].max()})
    run.artifacts(history)
