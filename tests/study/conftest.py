from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pspnet.config.params import Params
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.study.studying import Asked, Outcome, study
from pspnet.study.training import Material
from tests.files import made_once
from tests.parameters import demo_params
from tests.training.conftest import _no_loader_processes, prepared
from tests.training.trainings import Tick, quiet

__all__ = ["_no_loader_processes", "prepared"]


ARMS = ("mean_teacher", "jigsaw", "jigsaw+mean_teacher", "jigsaw_shuffled")


def tiny_params() -> Params:
    """A tiny network and steps of four small crops."""
    return demo_params(
        backbone__width=0.125,
        pretrain__batch_size=4,
        pretrain__crop_px=48,
        finetune__batch_size=4,
        finetune__crop_height_px=32,
        finetune__crop_width_px=40,
        finetune__optimizer__warmup_steps=2,
    )


def asked(**changes: Any) -> Asked:
    """A study of the smallest size, changed as asked."""
    usual = {"hours": 1.0, "fractions": (), "masks": (3,), "seeds": 2, "arms": ARMS, "steps": (4,)}
    return Asked(**{**usual, "pretraining_share": 1.0, **changes})


def run_study(
    prepared: Path, out: Path, tick: Tick = quiet, warn: Callable[[str], object] = str, **changes: Any
) -> Outcome:
    material = Material(PreparedDataset.open(prepared), prepared / "no weights")
    return study(tiny_params(), material, asked(**changes), out, out / "state", warn, tick)


@pytest.fixture(autouse=True)
def _no_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSPNET_TRACKING", "off")


@pytest.fixture
def params() -> Params:
    return tiny_params()


@pytest.fixture
def material(prepared: Path) -> Material:
    return Material(PreparedDataset.open(prepared), prepared / "no weights")


@pytest.fixture(scope="session")
def whole_study(shared: Path, prepared: Path) -> Path:
    """The folder of a finished study. Tests only read it."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PSPNET_LOADER_WORKERS", "0")
            patch.setenv("PSPNET_TRACKING", "off")
            run_study(prepared, folder)

    return made_once(shared / "study", make)
