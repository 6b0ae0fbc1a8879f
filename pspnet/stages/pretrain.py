"""Prepared images and weights to begin with -> a backbone that has learnt from them without masks, and its history."""

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
from pspnet.errors import Problem, UserError
from pspnet.model.backbone import ResNet
from pspnet.model.digest import digest as digest_of
from pspnet.model.imagenet import load_imagenet
from pspnet.model.preprocessing import IMAGENET, Preprocessing
from pspnet.model.pretrained import PretrainedBackbone, random_backbone
from pspnet.outputs import whole_file, whole_folder
from pspnet.process import rank, ranks
from pspnet.selfsup import METHODS
from pspnet.tracking.run import StageRun
from pspnet.training.checkpoint import open_checkpoint, training_digest
from pspnet.training.distributed import joined
from pspnet.training.pretrain import pretrain as train
from pspnet.training.runtime import configure, device_lock

SPLITS: tuple[Split, ...] = ("train", "unlabeled")  # never val or test
IMPORTED = "imported"  # folder of the weights; DVC keeps it as one thing


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
        return  # there is nothing to share
    dataset = PreparedDataset.open(prepared)
    fingerprints: dict[str, str] = {split: dataset.fingerprints[split] for split in SPLITS}
    network = random_backbone(
        backbone.depth, backbone.width, pretrain.output_stride, runtime.seed, backbone.stem, backbone.dilation
    )
    began, preprocessing = _begin(backbone, network, weights / IMPORTED, Preprocessing(dataset.mean, dataset.std))
    facts = PretrainedBackbone(
        method=pretrain.method,
        depth=backbone.depth,
        width=backbone.width,
        preprocessing=preprocessing,
        fingerprints=fingerprints,
        stem=backbone.stem,
        weights=began,
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
        index = dataset.index()
        augmentation = Augmentation(
            height_px=pretrain.crop_px,
            width_px=pretrain.crop_px,
            scale_min=pretrain.scale_min,
            scale_max=pretrain.scale_max,
            rotation_degrees=pretrain.rotation_degrees,
            flip_probability=pretrain.flip_probability,
            blur_probability=pretrain.blur_probability,
            color_jitter=pretrain.color_jitter,
            fill=preprocessing.mean_color,
            ignore=dataset.ignore,
        )
        views = UnlabelledViews(
            dataset.reader(), index[index["split"].isin(SPLITS)], augmentation, method.views, pretrain, runtime.seed
        )
        with (
            device_lock(device),
            open_checkpoint(checkpoints, "pretrain", digest) as checkpoint,
            joined(device) as peers,
        ):
            pretext = method(network, preprocessing, pretrain)
            training = train(pretext, views, pretrain, runtime, peers, checkpoint, tick)
            records = pd.DataFrame(run.epochs(training))
    if rank() != 0:
        return
    with whole_file(history) as path:
        records.astype({"epoch": np.int64}).to_csv(path, index=False)
    with whole_folder(out) as folder:
        facts.save(network, folder)
    run.artifacts(history)


def _begin(
    backbone: BackboneParams, network: ResNet, imported: Path, of_dataset: Preprocessing
) -> tuple[str, Preprocessing]:
    """Fill the network as `backbone.weights` says; returns what it began with and the colours that it expects."""
    if backbone.weights == "random":
        return "random", of_dataset
    if backbone.weights == "imagenet":
        load_imagenet(network)
        return "imagenet", IMAGENET
    if not imported.exists():
        fix = (
            "`pspnet weights import FILE --from PROJECT` makes it; `dvc pull` fetches what somebody else has imported."
        )
        raise UserError(Problem("backbone.weights: imported", f"{imported} is missing", "imported weights", fix))
    start = PretrainedBackbone.open(imported)
    start.load_into(network, imported)
    return start.weights, start.preprocessing
