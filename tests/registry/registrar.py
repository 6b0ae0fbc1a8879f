"""`python -m tests.registry.registrar STATE FOLDER` registers eight versions, each better than the one before.

The networks are untrained; each report measures predictions with fewer errors than the one before. A ninth version
has a different class.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pspnet.config.params import load_params
from pspnet.config.predict import PredictParams
from pspnet.dataset.annotated import Annotated
from pspnet.evaluation.measuring import measure
from pspnet.evaluation.report import EvaluationReport, write_report
from pspnet.machine.offline import go_offline
from pspnet.model.backbone.digest import digest
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.bundle import Bundle
from pspnet.model.network import Architecture, PSPNet
from pspnet.prediction.image.predictor import Prediction
from pspnet.prediction.image.protocol import PredictionProtocol
from pspnet.raw.classes import default_color
from pspnet.registry.model_registry import open_registry
from pspnet.registry.registration import Results, register

CLASSES = ("sky", "road", "car")
COLORS = tuple(default_color(number) for number in range(len(CLASSES)))
MASK = np.arange(24 * 32).reshape(24, 32).astype(np.uint8) % len(CLASSES)
SAMPLES = [Annotated(f"image{n}", f"scene{n // 2}", np.zeros((24, 32, 3), np.uint8), MASK) for n in range(20)]


class Careless:
    """Predicts the mask correctly, except for a fraction of the pixels."""

    def __init__(self, wrong: float) -> None:
        self._wrong, self._rng = wrong, np.random.default_rng(0)

    def predict(self, images: NDArray[np.uint8]) -> list[Prediction]:
        return [self._one() for _ in images]

    def _one(self) -> Prediction:
        mask = np.where(self._rng.random(MASK.shape) < self._wrong, (MASK + 1) % len(CLASSES), MASK)
        return Prediction(mask.astype(np.uint8), np.ones(mask.shape, np.float32))


def make(folder: Path, number: int, classes: tuple[str, ...], predict: PredictParams) -> None:
    """Create a bundle and its report."""
    torch.manual_seed(number)
    network = PSPNet(Architecture(18, 0.125, 8, len(classes), dropout=0.1))
    bundle = folder / "bundle"
    bundle.mkdir(parents=True)
    Bundle(network, Preprocessing((0.5,) * 3, (0.25,) * 3), classes, COLORS, "none", {}, "").save(bundle)
    confusion, images = measure(Careless(0.5 - number / 20), SAMPLES, classes, 255, lambda done: None)
    protocol = str(PredictionProtocol(**predict.model_dump()))
    report = EvaluationReport({}, digest(bundle), protocol, "test", "f" * 64, classes, COLORS, confusion, images)
    write_report(report, [], [], {}, folder / "report")


def main(state: Path, folder: Path) -> None:
    go_offline()
    registry = open_registry(state, load_params(folder / "params.yaml"))
    for number in range(1, 10):
        own = folder / str(number)
        make(own, number, CLASSES if number < 9 else ("sky", "road", "bus"), registry.params.predict)
        results = Results(own / "bundle", own / "report", folder / "nothing", folder / "nothing")
        assert [
            (version.number, new) for version, new in (register(registry, results), register(registry, results))
        ] == [
            (number, True),
            (number, False),
        ]


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
