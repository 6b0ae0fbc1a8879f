"""`pspnet plan` versus U-Net and FPN from segmentation-models-pytorch, with equal training time and random weights.

uv pip install segmentation-models-pytorch
python benchmarks/minutes.py --data FOLDER --work FOLDER --results minutes.csv [--sets steel camvid cells]

FOLDER holds steel_defects/, camvid/ and cell_membranes/. Ours: params by `pspnet plan --minutes N`, then the unmodified
stages; the time covers fine-tuning and validation. A peer: AdamW, poly, our crops and batch size, fp32 or bf16,
whichever is faster for it, until time is up, without validation. Both are measured on test by the same code. Runs
follow one another, each with two threads and one loader process; nothing else should be running. Every finished run is
a row; a run already in the file is not repeated, so the program can be stopped and restarted at will.

Steel: six peers once, the best two at a second learning rate, then the best and ours alternately with three seeds. The
other sets: the best two on steel and ours, alternately.
"""

import argparse
import csv
import itertools
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


from pipeline import processor  # noqa: E402

from pspnet.config.editing import edited  # noqa: E402
from pspnet.config.params import Params  # noqa: E402
from pspnet.config.reading import parse_value, validate  # noqa: E402
from pspnet.dataset.annotated import AnnotatedImages  # noqa: E402
from pspnet.dataset.store.prepared import PreparedDataset  # noqa: E402
from pspnet.evaluation.measuring import measure  # noqa: E402
from pspnet.losses.segmentation import build_loss  # noqa: E402
from pspnet.metrics import mean_iou  # noqa: E402
from pspnet.model.backbone.preprocessing import Preprocessing  # noqa: E402
from pspnet.model.bundle import Bundle  # noqa: E402
from pspnet.planning.planning import choose, planned  # noqa: E402
from pspnet.prediction.image.predictor import Member, Predictor  # noqa: E402
from pspnet.prediction.image.protocol import PredictionProtocol  # noqa: E402
from pspnet.stages import finetune, prepare, pretrain  # noqa: E402
from pspnet.tracking.run import StageRun  # noqa: E402
from pspnet.training.finetune import AnnotatedSplits  # noqa: E402
from pspnet.training.shared.distributed import Peers  # noqa: E402
from pspnet.training.shared.loading import load_batches  # noqa: E402

PEERS = [
    f"{decoder} {encoder}" for decoder in ("Unet", "FPN") for encoder in ("resnet18", "mobilenet_v2", "efficientnet-b0")
]
RATES = (0.001, 0.002)
SIDE = 32  # peers need images whose sides are multiples of this
WEIGHT_DECAY = 0.02
COLUMNS = ["set", "model", "rate", "seed", "minutes", "took", "images", "test_mean_iou", "processor"]


class Contest(NamedTuple):
    folder: str
    recipe: str
    minutes: float
    seeds: int
    changes: dict[str, Any]


CONTESTS = {
    "steel": Contest("steel_defects", "steel-defects", 12, 3, {}),
    "camvid": Contest("camvid", "camvid-two-hours", 30, 1, {}),
    "cells": Contest("cell_membranes", "cell-membranes", 5, 3, {}),
}


class Run(NamedTuple):
    contest: str
    model: str
    rate: float
    seed: int


def wanted(done: dict[Run, float], contest: str) -> Iterator[Run]:
    """The runs of a contest in order; the later ones depend on the results of the earlier ones."""
    first = [Run("steel", peer, RATES[0], 0) for peer in PEERS]
    yield from first if contest == "steel" else ()
    best = sorted(first, key=lambda run: -done[run])[:2]
    second = [run._replace(rate=RATES[1]) for run in best]
    yield from second if contest == "steel" else ()
    finalists = [max(pair, key=done.__getitem__) for pair in zip(best, second, strict=True)]
    finalists.sort(key=lambda run: -done[run])
    chosen = finalists[:1] if contest == "steel" else finalists
    for seed in range(CONTESTS[contest].seeds):
        for run in (*chosen, Run(contest, "ours", 0, 0)):
            yield run._replace(contest=contest, seed=seed)


class Padded(nn.Module):
    """A peer for images of any size."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        below, right = -height % SIDE, -width % SIDE
        return self.network(F.pad(images, (0, right, 0, below)))[..., :height, :width]


def train_peer(name: str, rate: float, dataset: PreparedDataset, params: Params, minutes: float) -> tuple[Padded, int]:
    """The network after the given minutes, and the number of images it was trained on."""
    import segmentation_models_pytorch as smp

    decoder, encoder = name.split()
    own, seed = params.finetune, params.runtime.seed
    torch.manual_seed(seed)
    torch.set_num_threads(params.runtime.threads)
    network = Padded(smp.create_model(decoder, encoder, encoder_weights=None, classes=len(dataset.classes)))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    preprocessing = Preprocessing(dataset.mean, dataset.std)
    crops = AnnotatedSplits.open(dataset, own, preprocessing.mean_color, seed).train
    loss_of = build_loss(
        params.finetune.loss, dataset.classes, dataset.class_pixels["train"], dataset.ignore, False, torch.device("cpu")
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)
    batches = load_batches(crops, len(crops), own.batch_size, seed, 0, 10**6, Peers(0, 1, torch.device("cpu")))
    seconds = {False: 0.0, True: 0.0}
    bf16, images, started = False, 0, time.monotonic()
    for step in itertools.count():
        done = (time.monotonic() - started) / (60 * minutes)
        if done >= 1:
            break
        if step < 8:  # try both, then keep the faster one
            bf16 = step % 4 >= 2
        elif step == 8:
            bf16 = seconds[True] < seconds[False]
        batch = next(batches)
        began = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 30) * (1 - done) ** 0.9
        network.train()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            logits = network(preprocessing(batch["image"]))
        optimizer.zero_grad()
        torch.autograd.backward(loss_of(logits, batch["mask"]))
        optimizer.step()
        images += len(batch["image"])
        seconds[bf16] = time.monotonic() - began
    batches.close()
    return network, images


def train_ours(params: Params, prepared: Path, work: Path) -> tuple[nn.Module, int]:
    """The bundle's network and the number of images it was trained on, by the stages themselves."""
    shutil.rmtree(work / "checkpoints", ignore_errors=True)
    common = {"prepared": prepared, "checkpoints": work / "checkpoints", "run": StageRun(), "tick": lambda *_: None}
    pretrain.run(
        params.backbone, params.pretrain, params.runtime, weights=work / "weights", out=work / "backbone",
        history=work / "pretrain.csv", **common,
    )  # fmt: skip
    finetune.run(
        params.backbone, params.finetune, params.runtime, pretrained=work / "backbone", out=work / "bundle",
        history=work / "finetune.csv", **common,
    )  # fmt: skip
    steps = int(pd.read_csv(work / "finetune.csv")["step"].iloc[-1])
    return Bundle.load(work / "bundle").network, steps * params.finetune.batch_size


def test_score(network: nn.Module, dataset: PreparedDataset, params: Params) -> float:
    protocol = PredictionProtocol(
        params.predict.window_px, params.predict.window_overlap_px, params.predict.scales, params.predict.flip
    )
    member = Member(network, Preprocessing(dataset.mean, dataset.std))  # type: ignore[arg-type]
    test = AnnotatedImages(dataset.reader(), dataset.annotated("test"))
    predictor = Predictor([member], protocol, torch.device("cpu"), "fp32")
    return mean_iou(measure(predictor, test, dataset.classes, dataset.ignore, lambda _: None)[0])


def execute(run: Run, data: Path, work: Path) -> dict[str, Any]:
    contest = CONTESTS[run.contest]
    text = (ROOT / f"recipes/{contest.recipe}.yaml").read_text(encoding="utf-8")
    text = edited(text, {"backbone.weights": "random", "runtime.seed": run.seed}, contest.recipe)
    recipe = validate(Params, parse_value(text, contest.recipe), contest.recipe)
    prepared = work / run.contest
    if not prepared.exists():
        prepare.run(
            recipe.dataset, recipe.prepare, raw=data / contest.folder, out=prepared, checkpoints=work / "state",
            run=StageRun(), tick=lambda *_: None,
        )  # fmt: skip
    dataset = PreparedDataset.open(prepared)
    text = planned(text, choose(dataset, text, contest.minutes, work / "plan"))
    params = validate(Params, parse_value(text, "the plan"), "the plan")
    started = time.monotonic()
    if run.model == "ours":
        network, images = train_ours(params, prepared, work)
    else:
        network, images = train_peer(run.model, run.rate, dataset, params, contest.minutes)
    took = (time.monotonic() - started) / 60
    return {
        **run._asdict(), "minutes": contest.minutes, "took": round(took, 2), "images": images,
        "test_mean_iou": round(test_score(network, dataset, params), 4), "processor": processor(),
    }  # fmt: skip


def finished(results: Path) -> dict[Run, float]:
    if not results.exists():
        return {}
    with results.open(newline="") as file:
        return {
            Run(row["set"], row["model"], float(row["rate"]), int(row["seed"])): float(row["test_mean_iou"])
            for row in csv.DictReader(file)
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for prepared sets and checkpoints")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(CONTESTS), choices=list(CONTESTS))
    parser.add_argument("--minutes", type=float, help="of every contest, to try this program")
    own = parser.parse_args()
    if own.minutes:
        CONTESTS.update({name: contest._replace(minutes=own.minutes) for name, contest in CONTESTS.items()})
    for name in own.sets:
        done = finished(own.results)
        for run in wanted(done, name):
            if run not in done:
                row = execute(run, own.data, own.work)
                new = not own.results.exists()
                with own.results.open("a", newline="") as file:
                    writer = csv.DictWriter(file, COLUMNS)
                    if new:
                        writer.writeheader()
                    writer.writerow({"set": row.pop("contest"), **row})
                done[run] = row["test_mean_iou"]
                print(run, row["test_mean_iou"], flush=True)


if __name__ == "__main__":
    main()
