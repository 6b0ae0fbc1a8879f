"""Compares `pspnet plan` with U-Net and FPN from segmentation-models-pytorch, given equal time and random weights.

uv pip install segmentation-models-pytorch
python benchmarks/minutes.py --data FOLDER --work FOLDER --results minutes.csv --time
python benchmarks/minutes.py --data FOLDER --work FOLDER --results minutes.csv [--sets steel camvid cells]

FOLDER contains steel_defects/, camvid/ and cell_membranes/. The first command needs a quiet machine: it creates our
params with `pspnet plan --minutes N` and measures the seconds per step of each peer, including loading. From then on,
the number of steps is fixed, so the second command trains every network equally long even on a busy machine.

Our network is trained by the unmodified stages, and its training time includes validation. A peer is trained with
AdamW, the poly schedule, our crops and our batch size, in fp32 or bf16 (whichever is faster for the peer), and without
validation. The same code evaluates both on the test split, and both train with two threads and one loader process.
Every finished run is a row in the results and is not repeated, so the program can be stopped and restarted at any time.

On steel, each of the six peers runs once, the best two run again at a second learning rate, and then the best one and
ours alternate with three seeds. On the other sets, the best two on steel and ours alternate.
"""

import argparse
import csv
import itertools
import json
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
from pspnet.training.shared.loading import Stream, load_batches  # noqa: E402

PEERS = [
    f"{decoder} {encoder}" for decoder in ("Unet", "FPN") for encoder in ("resnet18", "mobilenet_v2", "efficientnet-b0")
]
RATES = (0.001, 0.002)
SIDE = 32  # peers need images whose height and width are multiples of this
WEIGHT_DECAY = 0.02
TIMED_STEPS = 20
COLUMNS = ["set", "model", "rate", "seed", "minutes", "steps", "images", "test_mean_iou", "processor"]


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
    """Yield the runs of a contest in order. Later runs depend on the results of earlier runs."""
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
    """Wraps a peer so that it accepts images of any size."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        below, right = -height % SIDE, -width % SIDE
        return self.network(F.pad(images, (0, right, 0, below)))[..., :height, :width]


class PeerTraining:
    def __init__(self, name: str, rate: float, dataset: PreparedDataset, params: Params) -> None:
        import segmentation_models_pytorch as smp

        decoder, encoder = name.split()
        own, seed = params.finetune, params.runtime.seed
        torch.manual_seed(seed)
        torch.set_num_threads(params.runtime.threads)
        self._preprocessing = Preprocessing(dataset.mean, dataset.std)
        self.network = Padded(smp.create_model(decoder, encoder, encoder_weights=None, classes=len(dataset.classes)))
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        device = torch.device("cpu")
        self._loss_of = build_loss(
            own.loss, dataset.classes, dataset.class_pixels["train"], dataset.ignore, False, device
        )
        self._rate = rate
        self._optimizer = torch.optim.AdamW(self.network.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)
        crops = AnnotatedSplits.open(dataset, own, self._preprocessing.mean_color, seed).train
        self.batches = load_batches([Stream(crops, len(crops), own.batch_size)], seed, 0, 10**6, Peers(0, 1, device))

    def step(self, number: int, bf16: bool, done: float) -> None:
        """Train on one batch. `done` is the fraction of the training that is finished."""
        batch = next(self.batches)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * min(1.0, (number + 1) / 30) * (1 - done) ** 0.9
        self.network.train()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            logits = self.network(self._preprocessing(batch["image"]))
        self._optimizer.zero_grad()
        torch.autograd.backward(self._loss_of(logits, batch["mask"]))
        self._optimizer.step()


class Speed(NamedTuple):
    bf16: bool
    step_seconds: float


def time_peer(training: PeerTraining) -> Speed:
    """Return the faster precision and its seconds per step, including loading."""

    def seconds(bf16: bool, steps: int) -> float:
        started = time.monotonic()
        for number in range(steps):
            training.step(number, bf16, 0.0)
        return (time.monotonic() - started) / steps

    seconds(False, 2), seconds(True, 2)  # a warm-up, during which the loader starts
    bf16 = seconds(True, 4) < seconds(False, 4)
    return Speed(bf16, seconds(bf16, TIMED_STEPS))


def train_peer(training: PeerTraining, speed: Speed, minutes: float) -> int:
    """Train for as many steps as fit in the given minutes. Returns the number of steps."""
    steps = int(60 * minutes / speed.step_seconds)
    for number in range(steps):
        training.step(number, speed.bf16, number / steps)
    training.batches.close()
    return steps


def train_ours(params: Params, prepared: Path, work: Path) -> tuple[nn.Module, int]:
    """Train with the stages themselves. Returns the bundle's network and the number of training steps."""
    shutil.rmtree(work / "checkpoints", ignore_errors=True)
    common = {"prepared": prepared, "checkpoints": work / "checkpoints", "run": StageRun(), "tick": lambda *_: None}
    pretrain.run(
        params.backbone, params.pretrain, params.runtime, weights=work / "weights", out=work / "backbone",
        history=work / "pretrain.csv", page=work / "pretrain.html", **common,
    )  # fmt: skip
    finetune.run(
        params.backbone, params.finetune, params.runtime, pretrained=work / "backbone", out=work / "bundle",
        history=work / "finetune.csv", **common,
    )  # fmt: skip
    return Bundle.load(work / "bundle").network, int(pd.read_csv(work / "finetune.csv")["step"].iloc[-1])


def test_score(network: nn.Module, dataset: PreparedDataset, params: Params) -> float:
    protocol = PredictionProtocol(
        params.predict.window_px, params.predict.window_overlap_px, params.predict.scales, params.predict.flip
    )
    member = Member(network, Preprocessing(dataset.mean, dataset.std))  # type: ignore[arg-type]
    test = AnnotatedImages(dataset.reader(), dataset.annotated("test"))
    predictor = Predictor([member], protocol, torch.device("cpu"), "fp32")
    return mean_iou(measure(predictor, test, dataset.classes, dataset.ignore, lambda _: None)[0])


class Prepared(NamedTuple):
    dataset: PreparedDataset
    params: str  # our plan, as the text of a params file


def prepared(name: str, data: Path, work: Path) -> Prepared:
    """Return the contest's data and our plan for it. Create them if they are not in the work folder yet."""
    contest, folder, plan = CONTESTS[name], work / name, work / f"{name}.yaml"
    text = (ROOT / f"recipes/{contest.recipe}.yaml").read_text(encoding="utf-8")
    text = edited(text, {"backbone.weights": "random"}, contest.recipe)
    recipe = validate(Params, parse_value(text, contest.recipe), contest.recipe)
    if not folder.exists():
        prepare.run(
            recipe.dataset, recipe.prepare, raw=data / contest.folder, out=folder, checkpoints=work / "state",
            run=StageRun(), tick=lambda *_: None,
        )  # fmt: skip
    dataset = PreparedDataset.open(folder)
    if not plan.exists():
        plan.write_text(planned(text, choose(dataset, text, contest.minutes, work / "plan")), encoding="utf-8")
    return Prepared(dataset, plan.read_text(encoding="utf-8"))


def speed_of(name: str, peer: str, data: Path, work: Path) -> Speed:
    """Return the peer's speed on the contest's data. Measure it if it is not in the work folder yet."""
    path = work / "speeds.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if f"{name} {peer}" not in known:
        dataset, text = prepared(name, data, work)
        training = PeerTraining(peer, RATES[0], dataset, validate(Params, parse_value(text, "the plan"), "the plan"))
        known[f"{name} {peer}"] = time_peer(training)
        training.batches.close()
        path.write_text(json.dumps(known, indent=1), encoding="utf-8")
        print(name, peer, known[f"{name} {peer}"], flush=True)
    return Speed(*known[f"{name} {peer}"])


def execute(run: Run, data: Path, work: Path) -> dict[str, Any]:
    contest, (dataset, text) = CONTESTS[run.contest], prepared(run.contest, data, work)
    text = edited(text, {"runtime.seed": run.seed}, "the plan")
    params = validate(Params, parse_value(text, "the plan"), "the plan")
    network: nn.Module
    if run.model == "ours":
        network, steps = train_ours(params, work / run.contest, work)
    else:
        speed = speed_of(run.contest, run.model, data, work)
        training = PeerTraining(run.model, run.rate, dataset, params)
        steps, network = train_peer(training, speed, contest.minutes), training.network
    return {
        **run._asdict(), "minutes": contest.minutes, "steps": steps, "images": steps * params.finetune.batch_size,
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
    parser.add_argument("--time", action="store_true", help="only create the plans and measure the speeds")
    parser.add_argument("--minutes", type=float, help="minutes for every contest, to try out this program")
    own = parser.parse_args()
    if own.minutes:
        CONTESTS.update({name: contest._replace(minutes=own.minutes) for name, contest in CONTESTS.items()})
    if own.time:
        for name, peer in itertools.product(own.sets, PEERS):
            speed_of(name, peer, own.data, own.work)
        return
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
