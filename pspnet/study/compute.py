"""How much a training step of an arm computes: the real loop runs a few steps, and torch counts their operations."""

import json
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch.utils.flop_counter import FlopCounterMode

from pspnet.config.params import Params
from pspnet.errors import Interrupted
from pspnet.machine.outputs import whole_file
from pspnet.study.arms import NONE
from pspnet.study.identity import Identity
from pspnet.study.results import WAIT_SECONDS, Results
from pspnet.study.training import Material, train_backbone, train_network, with_steps
from pspnet.tracking.run import StageRun
from pspnet.training.shared.distributed import Tick

# Of fine-tuning, a whole run in small: a warm-up of 30% of the steps is three of them. Steps of pretraining are alike.
COUNTED_STEPS = {"finetune": 10, "pretrain": 1}


@dataclass(frozen=True)
class Compute:
    """FLOPs per step, on average over a run: multiplications and additions in convolutions and matrix products."""

    finetune: float
    pretrain: float  # 0 without pretraining


def compute_of(material: Material, params: Params, identity: Identity, results: Results, tick: Tick) -> Compute:
    """Count the compute of these params. Counts are kept, because every process of the study needs them."""
    params = params.model_copy(update={"runtime": params.runtime.model_copy(update={"compile": False})})

    def kept(stage: str, count: Callable[[Material, Params], float]) -> float:
        name = f"{stage}-{identity.key(stage, params, ('backbone', stage, 'runtime'))}"
        path = results.work / "compute" / f"{name}.json"
        while not path.exists():
            with results.claimed(name) as ours:
                if ours and not path.exists():
                    flops = count(material, params)
                    with whole_file(path) as partial:
                        partial.write_text(json.dumps({"flops_per_step": flops}), encoding="utf-8")
            if not ours:
                tick(0, 1, "waiting for the counts of another process")
                time.sleep(WAIT_SECONDS)
        return float(json.loads(path.read_text(encoding="utf-8"))["flops_per_step"])

    without = params.pretrain.method.kind == NONE
    return Compute(kept("finetune", _finetune_step), 0.0 if without else kept("pretrain", _pretrain_step))


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
    """Return the FLOPs per image over the first `images` of a training."""
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
