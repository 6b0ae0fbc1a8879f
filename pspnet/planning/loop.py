"""Run the real training loop for a few steps on the real data, to see how long a step and a validation image take."""

import statistics
import time
from itertools import pairwise
from pathlib import Path

import torch

from pspnet.config.params import Params
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.losses.segmentation import build_loss
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.device import configure
from pspnet.planning.rules import Measured
from pspnet.training.data import FinetuneData, Rows
from pspnet.training.finetune import build_network, finetune
from pspnet.training.shared.steps import open_session

STEPS = 8
UNTIMED = 3  # steps that are not timed, while the loader starts
VAL_IMAGES = 8


def time_loop(dataset: PreparedDataset, params: Params, state: Path) -> Measured:
    """`state` is a folder for the checkpoint, to be removed afterwards."""
    device = configure(params.runtime)
    per_epoch = max(1, len(dataset.annotated("train")) // params.finetune.batch_size)
    own = params.finetune.model_copy(update={"epochs": STEPS / per_epoch, "validations": 1})
    supervised = build_network(params.backbone, own, len(dataset.classes), params.runtime.seed)
    preprocessing = Preprocessing(dataset.mean, dataset.std)
    rows = Rows.of(dataset)
    rows = rows._replace(val=rows.val.head(VAL_IMAGES))
    data = FinetuneData.open(dataset, rows, own, preprocessing.mean_color, params.runtime.seed)
    loss_of = build_loss(
        own.loss, dataset.classes, dataset.class_pixels["train"], dataset.ignore, own.align_corners, device
    )
    ticks: list[tuple[float, int]] = []

    def tick(done: int, total: int, note: str) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()
        ticks.append((time.perf_counter(), done))

    with open_session("plan", "plan", state, params.runtime, device, tick) as session:
        for _ in finetune(supervised, preprocessing, data, loss_of, own, session):
            pass
    ended = {done: at for at, done in reversed(ticks)}  # when each step finished; later ticks come from validation
    steps = sorted(ended.values())
    last = steps[-1]
    return Measured(
        statistics.median(after - before for before, after in pairwise(steps[UNTIMED - 1 :])),
        max(at - last for at, _ in ticks) / max(1, len(data.val)),
    )
