"""Measures what improves training within a fixed computing time: one change at a time, on several sets.

python benchmarks/ideas.py --data FOLDER --work FOLDER --results ideas.csv [--share 1] [IDEA ...]

FOLDER contains camvid/, steel_defects/ and cell_membranes/. Each run trains one network from random weights on the
training split and evaluates it once on the validation split; the test split is never read. The budget is the time that
a fixed number of steps takes with `base`. An idea that makes a step cheaper or more expensive gets more or fewer steps:
`base` and the idea are timed alternately, in CPU seconds of one thread, so that other processes on the machine cost no
steps. Every finished run is a row in the results and is not repeated. Ideas that the product lacks (`PROTOTYPES`) are
implemented here; those that pay off are moved into the product.
"""

import argparse
import csv
import itertools
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ["PSPNET_LOADER_WORKERS"] = "0"  # all work is done in this process, whose CPU time is the clock
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from pspnet.config.finetune import FinetuneParams  # noqa: E402
from pspnet.config.params import Params  # noqa: E402
from pspnet.config.reading import read_yaml, validate  # noqa: E402
from pspnet.dataset.annotated import AnnotatedImages  # noqa: E402
from pspnet.dataset.augmentation import AffineCrop, Augmentation  # noqa: E402
from pspnet.dataset.store.prepared import PreparedDataset  # noqa: E402
from pspnet.dataset.training_samples import TrainingCrops  # noqa: E402
from pspnet.evaluation.measuring import measure  # noqa: E402
from pspnet.losses.segmentation import SegmentationLoss, build_loss  # noqa: E402
from pspnet.metrics import mean_iou  # noqa: E402
from pspnet.model.backbone.preprocessing import Preprocessing  # noqa: E402
from pspnet.model.device import configure  # noqa: E402
from pspnet.model.network import PSPNet  # noqa: E402
from pspnet.prediction.image.predictor import Member, Predictor  # noqa: E402
from pspnet.prediction.image.protocol import PredictionProtocol  # noqa: E402
from pspnet.stages import prepare  # noqa: E402
from pspnet.tracking.run import StageRun  # noqa: E402
from pspnet.training import finetune as training  # noqa: E402
from pspnet.training.shared.checkpoint import open_checkpoint  # noqa: E402
from pspnet.training.shared.distributed import joined  # noqa: E402
from pspnet.training.shared.steps import Session  # noqa: E402

Sample = dict[str, Tensor]

# A first guess at what works well for every set. Each idea changes one thing about it.
BASE: dict[str, Any] = {
    "backbone__depth": 18, "backbone__width": 0.5, "backbone__stem": "seven", "backbone__weights": "random",
    "finetune__epochs": 1, "finetune__validations": 1, "finetune__scale_min": 0.75, "finetune__scale_max": 1.5,
    "finetune__rotation_degrees": 0.0, "finetune__flip_probability": 0.5, "finetune__blur_probability": 0.0,
    "finetune__color_jitter": 0.2, "finetune__output_stride": 16, "finetune__decoder": "low_level",
    "finetune__pyramid_weights": "none", "finetune__auxiliary_weight": 0.4, "finetune__loss__kind": "cross_entropy",
    "finetune__loss__class_weights": "none", "finetune__dropout": 0.1, "finetune__optimizer__kind": "adamw",
    "finetune__optimizer__learning_rate": 0.002, "finetune__optimizer__weight_decay": 0.02,
    "finetune__optimizer__decay_norms_and_biases": False, "finetune__optimizer__schedule": "poly",
    "finetune__optimizer__gradient_clip_norm": 0.0, "finetune__optimizer__accumulation_steps": 1,
    "finetune__backbone_learning_rate_factor": 1.0, "finetune__head_learning_rate_factor": 1.0,
    "finetune__frozen_layers": 0, "finetune__ema_decay": 0.99, "finetune__patience_validations": 0,
    "runtime__threads": 1, "runtime__precision": "fp32", "runtime__compile": False,
}  # fmt: skip


@dataclass(frozen=True)
class Data:
    folder: str
    recipe: str
    steps: int  # number of steps in a run of base
    changes: dict[str, Any]


SETS = {
    "steel": Data("steel_defects", "steel-defects", 500, {
        "finetune__batch_size": 16, "finetune__crop_height_px": 192, "finetune__crop_width_px": 192}),
    "camvid": Data("camvid", "camvid-two-hours", 350, {
        "prepare__val_share": 0.2, "prepare__split_by": "stratified",
        "finetune__batch_size": 8, "finetune__crop_height_px": 240, "finetune__crop_width_px": 320}),
    "cells": Data("cell_membranes", "cell-membranes", 300, {
        "prepare__val_share": 0.25, "finetune__batch_size": 8, "finetune__crop_height_px": 256,
        "finetune__crop_width_px": 256}),
}  # fmt: skip


@dataclass(frozen=True)
class Idea:
    changes: dict[str, Any] = field(default_factory=dict)
    warmup: float = 0.05  # share of the steps used for warm-up
    crop: float = 1.0  # factor applied to the set's crop size, as `batch` is to its batch size
    batch: float = 1.0
    prototypes: tuple[str, ...] = ()
    same_cost: bool = False  # if true, a step takes as long as a step of base


def change(**changes: Any) -> Idea:
    return Idea({f"finetune__{key}": value for key, value in changes.items()})


def free(**changes: Any) -> Idea:
    return replace(change(**changes), same_cost=True)


IDEAS: dict[str, Idea] = {
    "base": Idea(same_cost=True),
    "rate * 2": free(optimizer__learning_rate=0.004),
    "rare classes 0.5": Idea(prototypes=("rare",)),
    "decoder plain": change(decoder="plain"),
    "width 0.25": Idea({"backbone__width": 0.25}),
    "batch / 2": Idea(batch=0.5),
    "dice": change(loss__kind="cross_entropy_dice"),
    "no average": free(ema_decay=0.0),
    "cutmix 0.5": Idea(prototypes=("cutmix",)),
    "stride 8": change(output_stride=8),
    "class weights": free(loss__class_weights="inverse_sqrt"),
    "crop 2/3": Idea(crop=0.67),
    "plain last fifth": Idea(same_cost=True, prototypes=("plain_end",)),
    "label smoothing 0.1": Idea(prototypes=("smoothing",)),
    "ohem": change(loss__kind="ohem"),
    "turns and flips": Idea(same_cost=True, prototypes=("turns",)),
    "color 0.4": free(color_jitter=0.4),
    "copy-paste 0.5": Idea(prototypes=("paste",)),
    "warm-up 20 %": Idea(warmup=0.2, same_cost=True),
    "statistics anew": Idea(same_cost=True, prototypes=("statistics",)),
    "scale 0.5-2": free(scale_min=0.5, scale_max=2.0),
    "no auxiliary loss": change(auxiliary_weight=0.0),
    "stem deep_narrow": Idea({"backbone__stem": "deep_narrow"}),
    "sgd 0.05": free(optimizer__kind="sgd", optimizer__learning_rate=0.05, optimizer__weight_decay=0.0001),
    "elastic": Idea(prototypes=("elastic",)),
    "rate * 4": free(optimizer__learning_rate=0.008),
    "rate / 2": free(optimizer__learning_rate=0.001),
    "no dropout": free(dropout=0.0),
    "cosine": free(optimizer__schedule="cosine"),
    "average 0.998": free(ema_decay=0.998),
    "weight decay 0.1": free(optimizer__weight_decay=0.1),
    "weight decay 0.0001": free(optimizer__weight_decay=0.0001),
    "stride 32": change(output_stride=32),
    "width 0.75": Idea({"backbone__width": 0.75}),
    "depth 34": Idea({"backbone__depth": 34}),
    "depth 50, width 0.25": Idea({"backbone__depth": 50, "backbone__width": 0.25}),
    "batch * 2": Idea(batch=2),
    "no warm-up": Idea(warmup=0.0, same_cost=True),
    "clip 1": free(optimizer__gradient_clip_norm=1.0),
    "no color": free(color_jitter=0.0),
    "scale 1": free(scale_min=1.0, scale_max=1.0),
    "rotation 10": free(rotation_degrees=10.0),
    "blur": change(blur_probability=0.5),
}


class CenteredCrop(AffineCrop):
    """A crop centered on `center`, in pixels of the image, as far as the image allows. Without a center, it can be
    anywhere.
    """

    center: tuple[float, float] | None = None

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        drawn = super().get_params_dependent_on_data(params, data)
        if self.center is not None:
            matrix = drawn["crop_to_image"]
            middle = np.array([(self.width_px - 1) / 2, (self.height_px - 1) / 2, 1])
            reach = np.abs(matrix[:, :2]) @ middle[:2]  # from the middle of the crop to its edges, in image pixels
            last = np.array([params["shape"][1] - 1, params["shape"][0] - 1])
            wanted = np.clip(self.center, np.minimum(reach, last / 2), np.maximum(last - reach, last / 2))
            matrix[:, 2] += wanted - matrix @ middle
        return drawn


def centering(params: FinetuneParams, size: tuple[int, int], fill: tuple[int, int, int], ignore: int) -> Augmentation:
    augmentation = Augmentation.from_params(params, *size, fill=fill, ignore=ignore)
    augmentation._crop = CenteredCrop(
        *size, params.scale_min, params.scale_max, params.rotation_degrees, params.flip_probability, fill, ignore
    )
    return augmentation


class Examples(TrainingCrops):
    """As many crops as the run needs. Each pass over the images draws new random changes."""

    def __init__(
        self,
        dataset: PreparedDataset,
        params: Params,
        fill: tuple[int, int, int],
        steps: int,
        prototypes: tuple[str, ...],
    ) -> None:
        finetune = params.finetune
        size = finetune.crop_height_px, finetune.crop_width_px
        augmentation = centering(finetune, size, fill, dataset.ignore)
        super().__init__(dataset.reader(), dataset.annotated("train"), augmentation, params.runtime.seed)
        still = finetune.model_copy(update={"scale_min": 1.0, "scale_max": 1.0, "color_jitter": 0.0})
        self._still = centering(still, size, fill, dataset.ignore)
        self._count, self._own, self._prototypes = steps * finetune.batch_size, len(self._places), prototypes
        self._ignore, self._classes = dataset.ignore, len(dataset.classes)
        pixels = np.array(dataset.class_pixels["train"])
        # Classes with fewer pixels than if all classes were equal.
        self._rare = np.flatnonzero(pixels < pixels.sum() / len(pixels))
        self._holders: list[list[int]] = [[] for _ in dataset.classes]
        if "rare" in prototypes:
            for place, (shard, row) in enumerate(self._places):
                for value in np.unique(self._reader.mask(shard, row)):
                    if value != dataset.ignore:
                        self._holders[value].append(place)

    def __len__(self) -> int:
        return self._count

    def source(self, position: int) -> str:
        return super().source(position % self._own)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        turn, place = divmod(key[1], self._own)
        seed = int(np.random.SeedSequence([self._seed, turn, place]).generate_state(1)[0] >> 1)
        draw = np.random.default_rng(seed)
        center = None
        if "rare" in self._prototypes and draw.random() < 0.5:
            value = draw.choice([k for k, holders in enumerate(self._holders) if holders])
            place = int(draw.choice(self._holders[value]))
            mask = self._reader.mask(*self._places[place])
            rows, columns = np.nonzero(mask == value)
            chosen = draw.integers(len(rows))
            center = (float(columns[chosen]), float(rows[chosen]))
        image, mask = self._crop(place, seed, center, key[1])
        if "cutmix" in self._prototypes and draw.random() < 0.5:
            other, of_other = self._crop(int(draw.integers(self._own)), seed + 1, None, key[1])
            height, width = mask.shape
            share = np.sqrt(draw.uniform(0.1, 0.5))
            tall, wide = int(height * share), int(width * share)
            top, left = draw.integers(height - tall + 1), draw.integers(width - wide + 1)
            box = np.s_[top : top + tall, left : left + wide]
            image, mask = image.copy(), mask.copy()
            image[box], mask[box] = other[box], of_other[box]
        if "paste" in self._prototypes and draw.random() < 0.5:
            other, of_other = self._crop(int(draw.integers(self._own)), seed + 1, None, key[1])
            objects = np.isin(of_other, self._rare)
            image, mask = image.copy(), mask.copy()
            image[objects], mask[objects] = other[objects], of_other[objects]
        if "turns" in self._prototypes:
            if draw.random() < 0.5:
                image, mask = image[::-1], mask[::-1]
            if mask.shape[0] == mask.shape[1]:
                turns = draw.integers(4)
                image, mask = np.rot90(image, turns), np.rot90(mask, turns)
            image, mask = np.ascontiguousarray(image), np.ascontiguousarray(mask)
        if "elastic" in self._prototypes:
            image, mask = elastic(image, mask, draw, self._ignore)
        return {"image": torch.from_numpy(image), "mask": torch.from_numpy(mask)}

    def _crop(self, place: int, seed: int, center: tuple[float, float] | None, position: int) -> Any:
        shard, row = self._places[place]
        still = "plain_end" in self._prototypes and position > 0.8 * self._count
        augmentation = self._still if still else self._augmentation
        augmentation._crop.center = center
        return augmentation.image_and_mask(self._reader.image(shard, row), self._reader.mask(shard, row), seed)


def elastic(image: Any, mask: Any, draw: np.random.Generator, ignore: int) -> tuple[Any, Any]:
    """Shift the pixels by smooth random amounts: a grid of 4 x 4 knots with a standard deviation of 6 pixels."""
    height, width = mask.shape
    moves = [
        cv2.resize(draw.normal(0, 6, (4, 4)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
        for _ in range(2)
    ]
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    columns, rows = columns + moves[0], rows + moves[1]
    return (
        cv2.remap(image, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT),
        cv2.remap(mask, columns, rows, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=ignore),
    )


class Smoothed(SegmentationLoss):
    """Cross-entropy with label smoothing: every class gets a share of the target."""

    SHARE = 0.1

    def _mean(self, logits: Tensor, masks: Tensor) -> Tensor:
        weights = self._pixel_weights(masks)
        enlarged = F.interpolate(logits.float(), masks.shape[-2:], mode="bilinear", align_corners=False)
        others = -(F.log_softmax(enlarged, dim=1).mean(dim=1) * weights).sum() / weights.sum().clamp(min=1)
        return (1 - self.SHARE) * super()._mean(logits, masks) + self.SHARE * others


@dataclass
class Trained:
    network: PSPNet
    preprocessing: Preprocessing
    step_seconds: float  # median CPU time


def train(idea: Idea, dataset: PreparedDataset, params: Params, steps: int, checkpoints: Path, val: Any) -> Trained:
    device = configure(params.runtime)
    finetune = params.finetune
    supervised = training.build_network(params.backbone, finetune, len(dataset.classes), params.runtime.seed)
    preprocessing = Preprocessing(dataset.mean, dataset.std)
    optimizer = finetune.optimizer.model_copy(update={"warmup_steps": round(idea.warmup * steps)})
    finetune = finetune.model_copy(update={"optimizer": optimizer})
    examples = Examples(dataset, params, preprocessing.mean_color, steps, idea.prototypes)
    loss = build_loss(
        finetune.loss, dataset.classes, dataset.class_pixels["train"], dataset.ignore, finetune.align_corners, device
    )
    if "smoothing" in idea.prototypes:
        loss = Smoothed(finetune.loss, loss.class_weights, dataset.ignore, finetune.align_corners, device)
    splits = training.AnnotatedSplits(examples, val, dataset.classes, dataset.ignore)
    ticks: list[float] = []

    def tick(done: int, total: int, note: str) -> None:
        ticks.append(time.process_time())

    with open_checkpoint(checkpoints, "finetune", "run") as checkpoint, joined(device) as peers:
        session = Session(params.runtime, peers, checkpoint, tick)
        for _ in training.finetune(supervised, preprocessing, splits, loss, finetune, session):
            pass
    (checkpoints / "finetune-run" / "state.safetensors").unlink()
    if "statistics" in idea.prototypes:
        estimate_statistics(supervised.network, preprocessing, examples, finetune.batch_size)
    step = float(np.median(np.diff(ticks[2:steps])))
    return Trained(supervised.network, preprocessing, step)


def estimate_statistics(network: PSPNet, preprocessing: Preprocessing, examples: Examples, batch: int) -> None:
    """Recompute BatchNorm's means and variances with the final weights, over 40 batches."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # use the mean over all batches
    network.train()
    with torch.no_grad():
        for first in range(0, 40 * batch, batch):
            images = [examples[0, (first + one) % len(examples)]["image"] for one in range(batch)]
            network(preprocessing(torch.stack(images).permute(0, 3, 1, 2)))


def score(trained: Trained, params: Params, dataset: PreparedDataset, scales: list[float], flip: bool) -> float:
    window = 2 * max(params.finetune.crop_height_px, params.finetune.crop_width_px)
    protocol = PredictionProtocol(window, window // 4, scales=scales, flip=flip)
    predictor = Predictor([Member(trained.network, trained.preprocessing)], protocol, torch.device("cpu"), "fp32")
    val = AnnotatedImages(dataset.reader(), dataset.annotated("val"))
    confusion, _ = measure(predictor, val, dataset.classes, dataset.ignore, lambda _: None)
    return mean_iou(confusion)


def params_for(name: str, idea: Idea, seed: int, precision: str) -> Params:
    own = SETS[name]
    content = read_yaml(ROOT / f"recipes/{own.recipe}.yaml")
    for path, value in {
        **BASE,
        **own.changes,
        **idea.changes,
        "runtime__seed": seed,
        "runtime__precision": precision,
    }.items():
        *sections, key = path.split("__")
        section = content
        for part in sections:
            section = section[part]
        section[key] = value
    finetune = content["finetune"]
    finetune["batch_size"] = round(finetune["batch_size"] * idea.batch)
    for key in ("crop_height_px", "crop_width_px"):
        finetune[key] = 16 * round(finetune[key] * idea.crop / 16)
    return validate(Params, content, own.recipe)


def rows(
    name: str, label: str, seed: int, share: float, precision: str, data: Path, work: Path
) -> Iterator[dict[str, Any]]:
    own, idea = SETS[name], IDEAS[label]
    params = params_for(name, idea, seed, precision)
    prepared = work / name
    if not prepared.exists():
        prepare.run(
            params.dataset, params.prepare, raw=data / own.folder, out=prepared, checkpoints=work / "state",
            run=StageRun(), tick=lambda *_: None,
        )  # fmt: skip
    dataset = PreparedDataset.open(prepared)
    val = AnnotatedImages(dataset.reader(), dataset.annotated("val"))
    checkpoints, cost = work / f"state-{os.getpid()}", 1.0
    if not idea.same_cost:
        base, ours = (
            (IDEAS["base"], params_for(name, IDEAS["base"], seed, precision)), (idea, params)
        )  # fmt: skip
        turns = [
            [train(which, dataset, its, 8, checkpoints, [val[0]]).step_seconds for which, its in (base, ours)]
            for _ in range(3)
        ]
        cost = float(np.median([mine / its for its, mine in turns]))
    steps = round(share * own.steps / cost)
    trained = train(idea, dataset, params, steps, checkpoints, [val[0]])
    facts = {
        "set": name, "seed": seed, "cost": round(cost, 3), "steps": steps,
        "images": steps * params.finetune.batch_size, "cpu_seconds": round(steps * trained.step_seconds),
    }  # fmt: skip
    tests = {label: ([1.0], False)}
    if label == "base":
        tests |= {"flip at test time": ([1.0], True), "flip, three scales at test time": ([0.75, 1.0, 1.25], True)}
    for test, (scales, flip) in tests.items():
        yield {**facts, "idea": test, "val_mean_iou": round(score(trained, params, dataset, scales, flip), 4)}


COLUMNS = ["set", "idea", "seed", "share", "precision", "cost", "steps", "images", "cpu_seconds", "val_mean_iou"]


def table(results: Path) -> str:
    """Return a table with one line per idea: its gain over `base` on each set, averaged over the seeds of both."""
    frame = pd.read_csv(results)
    own = frame.set_index(["set", "precision", "share", "seed"])
    base = own[own["idea"] == "base"]["val_mean_iou"]
    gains = own["val_mean_iou"] - base.reindex(own.index)
    of_sets = (
        gains.to_frame("gain").assign(idea=own["idea"]).reset_index().pivot_table("gain", "idea", "set", sort=False)
    )
    lines = ["| | " + " | ".join(of_sets.columns) + " |", "|---|" + "--:|" * len(of_sets.columns)]
    for idea, row in of_sets.iterrows():
        if idea != "base":
            lines.append(f"| {idea} | " + " | ".join("" if np.isnan(gain) else f"{gain:+.3f}" for gain in row) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for the prepared sets")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--share", type=float, default=1.0, help="fraction of base's steps to train")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("ideas", nargs="*", default=list(IDEAS))
    parser.add_argument("--table", action="store_true", help="only print the results so far")
    own = parser.parse_args()
    if own.table:
        print(table(own.results))
        return
    for seed, label, name in itertools.product(range(own.seeds), own.ideas, own.sets):
        key = [name, label, str(seed), str(own.share), own.precision]
        done = list(csv.reader(own.results.open())) if own.results.exists() else [COLUMNS]
        if any(row[:5] == key for row in done):
            continue
        for row in rows(name, label, seed, own.share, own.precision, own.data, own.work):
            new = not own.results.exists()
            with own.results.open("a", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                if new:
                    writer.writeheader()
                writer.writerow({**row, "share": own.share, "precision": own.precision})
            print(row, flush=True)


if __name__ == "__main__":
    main()
