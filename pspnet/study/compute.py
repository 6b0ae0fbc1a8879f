"""How much a training step of an arm computes: the real loop runs a few steps, and torch counts their operations."""

import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch.utils.flop_counter import FlopCounterMode

from pspnet.config.params import Params
from pspnet.errors import Interrupted
from pspnet.machine.outputs import whole_file
from pspnet.study.arms import NONE
from pspnet.study.training import Material, train_backbone, train_network, with_steps
from pspnet.tracking.run import StageRun
from pspnet.training.shared.distributed import Tick

# Of fine-tuning, a whole run in small: a warm-up of 30% of the steps is three of them. Steps of pretraining are alike.
COUNTED_STEPS = {"finetune": 10, "pretrain": 1}


@dataclass(frozen=True)
class Compute:
    """FLOPs per step, on average over a run. Multiplications and additions of convolutions and matrices count."""

    finetune: float
    pretrain: float  # 0 without pretraining


def compute_of(material: Material, params: Params, folder: Path, key: str) -> Compute:
    """The compute of these params. It is counted once and kept in `folder`, because every process needs it."""
    known = folder / f"{key}.json"
    params = params.model_copy(update={"runtime": params.runtime.model_copy(update={"compile": False})})
    if not known.exists():
        counted = {"finetune": _finetune_step(material, params), "pretrain": 0.0}
        if params.pretrain.method.kind != NONE:
            counted["pretrain"] = _pretrain_step(material, params)
        with whole_file(known) as path:
            path.write_text(json.dumps(counted), encoding="utf-8")
    return Compute(**json.loads(known.read_text(encoding="utf-8")))


def _finetune_step(material: Material, params: Params) -> float:
    size = params.finetune.batch_size
    rows = material.rows(size, params.runtime.seed, size)
    small = with_steps(params, COUNTED_STEPS["finetune"], size)

    def train(checkpoints: Path, tick: Tick) -> None:
        one_image = rows._replace(val=rows.val.head(1))
        train_network(material, small, one_image, None, checkpoints, "counted", tick, StageRun())

    return _count(train, COUNTED_STEPS["finetune"] * size) * size


def _pretrain_step(material: Material, params: Params) -> float:
    size = params.pretrain.batch_size

    def train(checkpoints: Path, tick: Tick) -> None:
        train_backbone(material, params, checkpoints, "counted", tick)

    return _count(train, COUNTED_STEPS["pretrain"] * size) * size


def _count(train: Callable[[Path, Tick], None], images: int) -> float:
    """FLOPs per image over the first `images` of a training."""
    with tempfile.TemporaryDirectory() as folder, FlopCounterMode(display=False) as counter:
        flops = 0

        def tick(done: int, total: int, note: str) -> None:
            nonlocal flops
            if done == images:
                flops = counter.get_total_flops()
                raise Interrupted(0)  # before val is measured

        with suppress(Interrupted):
            train(Path(folder), tick)
    return flops / images
