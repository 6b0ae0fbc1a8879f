"""Short pretraining runs on images drawn here, shared by all processes that train together, as in `peers.py`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pspnet.dataset.views import UnlabeledViews
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.backbone.resnet import ResNet
from pspnet.model.device import configure
from pspnet.selfsup import METHODS
from pspnet.selfsup.pretext import Pretext
from pspnet.training.pretrain import pretrain
from pspnet.training.shared.checkpoint import Checkpoint
from pspnet.training.shared.distributed import Peers, joined
from pspnet.training.shared.steps import Session
from tests.parameters import demo_params, method_params
from tests.training.trainings import quiet

IMAGES, BATCH, SIDE_PX = 16, 8, 64
RUNTIME = demo_params(runtime__threads=1).runtime
CASES: dict[str, dict[str, Any]] = {
    "masked": {"kind": "masked", "patch_px": 16},
    "hard": {"kind": "masked", "patch_px": 16, "select": "hard"},
    "densecl": {"kind": "densecl", "queue_size": 64},
}


class Drawn(UnlabeledViews):
    def __init__(self, method: type[Pretext[Any]], params: Any) -> None:
        self._views, self._params = method.views, params

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        rng = np.random.default_rng(key)

        def crop() -> np.ndarray[Any, np.dtype[np.uint8]]:
            return rng.integers(0, 256, (8, 8, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)

        views = self._views(crop, self._params, rng)
        return {"position": torch.tensor(key[1])} | {
            name: torch.from_numpy(np.asarray(view, order="C")) for name, view in views.items()
        }


def fixed(pretext: Pretext[Any]) -> Pretext[Any]:
    """Fix BatchNorm's statistics, so that no result depends on one process's batch."""

    def stay(mode: bool = True) -> Pretext[Any]:
        type(pretext).train(pretext, mode)
        for module in pretext.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return pretext

    pretext.train = stay  # type: ignore[method-assign]
    return pretext


def train(case: str, folder: Path, peers: Peers) -> None:
    params = demo_params(
        pretrain__epochs=3, pretrain__batch_size=BATCH, pretrain__crop_px=SIDE_PX, pretrain__optimizer__kind="sgd",
        pretrain__optimizer__learning_rate=0.01, pretrain__optimizer__warmup_steps=0,
        pretrain__optimizer__gradient_clip_norm=1.0,
    ).pretrain  # fmt: skip
    kind, settings = CASES[case]["kind"], {name: one for name, one in CASES[case].items() if name != "kind"}
    own, method = method_params(kind, **settings), METHODS[kind]
    torch.manual_seed(0)
    gray = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    pretext = fixed(method(ResNet(18, 0.125, 16), gray, own))
    session = Session(RUNTIME, peers, Checkpoint(folder, writes=peers.rank == 0), quiet)
    records = list(pretrain(pretext, Drawn(method, own), params, session))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"records-{peers.rank}.json").write_text(json.dumps(records))


def main(out: Path) -> None:
    """Train in one process, or in each of several that a test has connected."""
    with joined(configure(RUNTIME)) as peers:
        for case in CASES:
            train(case, out / case, peers)
