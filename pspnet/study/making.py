"""Makes one run of a study, or a backbone that several runs need. Killed, it continues from its checkpoint."""

import json
import math
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pspnet import metrics
from pspnet.config.params import Params
from pspnet.machine.outputs import whole_folder
from pspnet.model.backbone.resnet import ResNet
from pspnet.model.backbone.weights import load_weights, save_weights
from pspnet.study.grid import Pretraining, Run
from pspnet.study.results import CSV, PAGE, Results
from pspnet.study.training import Material, measure_on_test, shuffled, train_backbone, train_network
from pspnet.tracking.attempt import Place, stage_run
from pspnet.training.shared.distributed import Tick

WEIGHTS, FACTS = "backbone.safetensors", "facts.json"
SECTIONS = ("backbone", "finetune", "predict", "runtime")


class Stopwatch:
    """A tick that measures a training. A resumed training counts as a whole, at the pace seen here."""

    def __init__(self, tick: Tick) -> None:
        self._tick = tick
        self._first: tuple[float, int] | None = None
        self._last, self._total = (0.0, 0), 0

    def __call__(self, done: int, total: int, note: str) -> None:
        if done > self._last[1]:  # later ticks at the same place are val's
            self._last, self._total = (time.monotonic(), done), total
            self._first = self._first or self._last
        self._tick(done, total, note)

    @property
    def seconds(self) -> float | None:
        """None if it was resumed so late that there is nothing to measure."""
        if self._first is None or self._last[1] == self._first[1]:
            return None
        (began, first), (ended, last) = self._first, self._last
        return (ended - began) / (last - first) * self._total


@dataclass(frozen=True)
class Maker:
    material: Material
    results: Results
    state: Path
    parent: str  # the key of the study's run in MLflow
    warn: Callable[[str], object]

    def has_backbone(self, pretraining: Pretraining) -> bool:
        return self._backbone(pretraining).exists()

    def make_backbone(self, pretraining: Pretraining, tick: Tick) -> None:
        watch, checkpoints = Stopwatch(tick), self._checkpoints(pretraining.key)
        backbone = train_backbone(self.material, pretraining.params, checkpoints, pretraining.key, watch)
        with whole_folder(self._backbone(pretraining)) as folder:
            save_weights(backbone, folder / WEIGHTS)
            (folder / FACTS).write_text(json.dumps({"seconds": watch.seconds}), encoding="utf-8")
        shutil.rmtree(checkpoints, ignore_errors=True)

    def make(self, run: Run, tick: Tick) -> None:
        sections = (*SECTIONS, "pretrain") if run.pretraining else SECTIONS
        params = run.params
        if run.pretraining:
            params = params.model_copy(update={"pretrain": run.pretraining.params.pretrain})
        tags = {f"pspnet.study.{name}": str(getattr(run, name)) for name in ("masks", "seed", "steps")}
        place = Place("study", self.parent, run.name, {**tags, "pspnet.study.arm": run.arm.name})
        checkpoints = self._checkpoints(run.key)
        with stage_run(self.state, "study", params, sections, None, self.warn, place=place) as tracked:
            tracked.identify(run=run.key)
            watch = Stopwatch(tick)
            rows = self.material.rows(run.masks, run.seed, params.finetune.batch_size)
            backbone, pretraining_seconds = self._start(run)
            last, predictor = train_network(self.material, params, rows, backbone, checkpoints, run.key, watch, tracked)
            began = time.monotonic()
            confusion = measure_on_test(self.material, predictor, tick)
            figures = {
                "test_mean_iou": metrics.mean_iou(confusion),
                "val_mean_iou": last["val_mean_iou"],
                "flops": run.flops,
                "pretraining_flops": run.pretraining.flops if run.pretraining else 0.0,
                "seconds": watch.seconds,
                "pretraining_seconds": pretraining_seconds,
                "test_seconds": time.monotonic() - began,
            }
            ious = zip(self.material.dataset.classes, metrics.class_iou(confusion).tolist(), strict=True)
            of_classes = {name: None if math.isnan(iou) else iou for name, iou in ious}
            facts = {"arm": run.arm.name, "masks": run.masks, "seed": run.seed, "steps": run.steps}
            facts |= {"equal_steps": run.equal_steps, **figures, "host": platform.node()}
            self.results.add(run.key, facts | {f"iou/{name}": iou for name, iou in of_classes.items()})
            tracked.figures({**figures, "test_iou": of_classes})
        shutil.rmtree(checkpoints, ignore_errors=True)

    def record_result(self, params: Params, finished: int, gains: Mapping[str, float]) -> None:
        """Record the page and the CSV, and the gains with the study itself."""
        place = Place("study", self.parent, "result", {})
        with stage_run(self.state, "study", params, SECTIONS, None, self.warn, place=place) as tracked:
            tracked.identify(result=self.parent, finished=finished)
            tracked.artifacts(self.results.folder / PAGE, self.results.folder / CSV)
            tracked.headline({"gain": gains})

    def _start(self, run: Run) -> tuple[ResNet | None, float | None]:
        """Return the pretrained backbone and the seconds that its training took."""
        if run.pretraining is None:
            return None, 0.0
        folder = self._backbone(run.pretraining)
        backbone, _ = self.material.start(run.params)
        load_weights(backbone, folder / WEIGHTS)
        seconds = json.loads((folder / FACTS).read_text(encoding="utf-8"))["seconds"]
        return shuffled(backbone, run.seed) if run.arm.shuffled else backbone, seconds

    def _backbone(self, pretraining: Pretraining) -> Path:
        return self.results.work / "backbones" / pretraining.key

    def _checkpoints(self, key: str) -> Path:
        """Return a folder for this key alone: in a common one, training removes old checkpoints of other processes."""
        return self.results.work / "checkpoints" / key
