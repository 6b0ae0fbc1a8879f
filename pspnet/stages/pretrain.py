"""The pretrain stage: from prepared images and initial weights to a backbone trained without masks, its history, and a
page that shows what it has learned.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from pspnet.config.backbone import BackboneParams
from pspnet.config.pretrain import PretrainParams
from pspnet.config.runtime import RuntimeParams
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.dataset.store.splits import Split
from pspnet.evaluation.pretraining.page import write_page
from pspnet.evaluation.pretraining.probing import compare_with_random
from pspnet.machine.outputs import whole_file, whole_folder
from pspnet.machine.process import rank
from pspnet.model.backbone.digest import digest as digest_of
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.backbone.pretrained import PretrainedBackbone
from pspnet.model.backbone.starting import starting_backbone
from pspnet.model.device import configure
from pspnet.selfsup import METHODS
from pspnet.tracking.run import StageRun
from pspnet.training.pretrain import open_views, reconstructions
from pspnet.training.pretrain import pretrain as train
from pspnet.training.shared.checkpoint import training_digest
from pspnet.training.shared.steps import open_session

SPLITS: tuple[Split, ...] = ("train", "unlabeled")  # never val or test
PICTURES = 4
IMPORTED = "imported"  # folder that contains the weights; DVC tracks it as one output


def run(
    backbone: BackboneParams,
    pretrain: PretrainParams,
    runtime: RuntimeParams,
    *,
    prepared: Path,
    weights: Path,
    out: Path,
    history: Path,
    page: Path,
    checkpoints: Path,
    run: StageRun,
    tick: Callable[[int, int, str], None],
) -> None:
    if pretrain.method.kind == "none" and rank() != 0:
        return  # nothing to train
    dataset = PreparedDataset.open(prepared)
    fingerprints: dict[str, str] = {split: dataset.fingerprints[split] for split in SPLITS}
    of_dataset = Preprocessing(dataset.mean, dataset.std)
    network, origin, preprocessing = starting_backbone(
        backbone, pretrain.output_stride, runtime.seed, weights / IMPORTED, of_dataset
    )
    facts = PretrainedBackbone(
        **backbone.model_dump(include={"depth", "width", "stem"}),
        method=pretrain.method.kind,
        preprocessing=preprocessing,
        fingerprints=fingerprints,
        weights=origin,
    )
    device = configure(runtime)
    sections = {"backbone": backbone, "pretrain": pretrain, "runtime": runtime}
    imported = {"weights": digest_of(weights / IMPORTED)} if backbone.weights == "imported" else {}
    digest = training_digest("pretrain", sections, {**fingerprints, **imported}, device)
    run.identify(training=digest)
    for split in SPLITS:
        run.dataset(split, fingerprints[split], prepared, dataset.images[split])
    records, probes, pictures = pd.DataFrame(columns=["step", "epoch", "loss"]), [], []
    if pretrain.method.kind != "none":
        method = METHODS[pretrain.method.kind]
        views = open_views(dataset, SPLITS, method, pretrain, preprocessing.mean_color, runtime.seed)
        pretext = method(network, preprocessing, pretrain.method)
        with open_session("pretrain", digest, checkpoints, runtime, device, tick) as session:
            records = pd.DataFrame(run.epochs(train(pretext, views, pretrain, session)))
        if rank() != 0:
            return
        network, pictures = pretext.trained_backbone(), reconstructions(pretext, views, PICTURES)
        probes = compare_with_random(
            network,
            preprocessing,
            pretrain.method.kind,
            dataset,
            backbone,
            pretrain.output_stride,
            runtime.seed,
            device,
        )
        run.figures({"probe_mean_iou": {one.weights: one.mean_iou for one in probes}})
    with whole_file(history) as path:
        records.astype({"step": np.int64, "epoch": np.int64}).to_csv(path, index=False)
    with whole_folder(out) as folder:
        facts.save(network, folder)
    with whole_file(page) as path:
        write_page(pretrain.method.kind, records, probes, pictures, path)
    run.artifacts(history, page)
