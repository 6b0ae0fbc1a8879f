"""Prepared images and initial weights -> a backbone trained without masks, and the history of its training."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from pspnet.config.backbone import BackboneParams
from pspnet.config.pretrain import PretrainParams
from pspnet.config.runtime import RuntimeParams
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.dataset.store.splits import Split
from pspnet.machine.outputs import whole_file, whole_folder
from pspnet.machine.process import rank, ranks
from pspnet.model.backbone.digest import digest as digest_of
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.backbone.pretrained import PretrainedBackbone, random_backbone
from pspnet.model.backbone.starting import fill
from pspnet.selfsup import METHODS
from pspnet.tracking.run import StageRun
from pspnet.training.pretrain import open_views
from pspnet.training.pretrain import pretrain as train
from pspnet.training.shared.checkpoint import training_digest
from pspnet.training.shared.runtime import configure
from pspnet.training.shared.steps import open_session

SPLITS: tuple[Split, ...] = ("train", "unlabeled")  # never val or test
IMPORTED = "imported"  # folder of the weights, which DVC tracks as one output


def run(
    backbone: BackboneParams,
    pretrain: PretrainParams,
    runtime: RuntimeParams,
    *,
    prepared: Path,
    weights: Path,
    out: Path,
    history: Path,
    checkpoints: Path,
    run: StageRun,
    tick: Callable[[int, int, str], None],
) -> None:
    if pretrain.method == "none" and rank() != 0:
        return  # nothing to train
    dataset = PreparedDataset.open(prepared)
    fingerprints: dict[str, str] = {split: dataset.fingerprints[split] for split in SPLITS}
    network = random_backbone(
        backbone.depth, backbone.width, pretrain.output_stride, runtime.seed, backbone.stem, backbone.dilation
    )
    origin, preprocessing = fill(
        network, backbone.weights, weights / IMPORTED, Preprocessing(dataset.mean, dataset.std)
    )
    facts = PretrainedBackbone(
        method=pretrain.method,
        depth=backbone.depth,
        width=backbone.width,
        preprocessing=preprocessing,
        fingerprints=fingerprints,
        stem=backbone.stem,
        weights=origin,
    )
    device = configure(runtime)
    sections = {"backbone": backbone, "pretrain": pretrain, "runtime": runtime}
    dependencies = {**fingerprints, "device": device.type, "devices": str(ranks())}
    if backbone.weights == "imported":
        dependencies["weights"] = digest_of(weights / IMPORTED)
    digest = training_digest("pretrain", sections, dependencies)
    run.identify(training=digest)
    for split in SPLITS:
        run.dataset(split, fingerprints[split], prepared, dataset.images[split])
    records = pd.DataFrame(columns=["epoch", "loss"])
    if pretrain.method != "none":
        method = METHODS[pretrain.method]
        views = open_views(dataset, SPLITS, method, pretrain, preprocessing.mean_color, runtime.seed)
        with open_session("pretrain", digest, checkpoints, runtime, device, tick) as session:
            pretext = method(network, preprocessing, pretrain)
            training = train(pretext, views, pretrain, session)
            records = pd.DataFrame(run.epochs(training))
    if rank() != 0:
        return
    with whole_file(history) as path:
        records.astype({"epoch": np.int64}).to_csv(path, index=False)
    with whole_folder(out) as folder:
        facts.save(network, folder)
    run.artifacts(history)
