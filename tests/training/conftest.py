import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from pspnet.config.params import Params
from pspnet.demo.streets import synthesize
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.backbone.pretrained import PretrainedBackbone, random_backbone
from pspnet.stages import prepare
from pspnet.tracking.run import StageRun
from tests.files import made_once
from tests.parameters import demo_params
from tests.training.trainings import Finished, quiet, run_finetune, run_pretrain

__all__ = ["quiet"]  # other tests import this from here
GRAY = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture(autouse=True)
def _no_loader_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting loader processes takes longer than most of these training runs."""
    monkeypatch.setenv("PSPNET_LOADER_WORKERS", "0")


@pytest.fixture(scope="session")
def prepared(shared: Path) -> Path:
    """Forty images, twenty-eight of them with masks."""

    def make(folder: Path) -> None:
        synthesize(folder / "raw", images=40, labeled=28, seed=0, tick=quiet)
        params = demo_params(dataset__group_pattern="(.*)", prepare__val_share=0.2, prepare__test_share=0.2)
        prepare.run(
            params.dataset, params.prepare, raw=folder / "raw", out=folder / "prepared",
            checkpoints=folder / "checkpoints", run=StageRun(), tick=quiet,
        )  # fmt: skip

    return made_once(shared / "training/data", make) / "prepared"


@pytest.fixture(scope="session")
def backbone(shared: Path) -> Path:
    def make(folder: Path) -> None:
        PretrainedBackbone("rotation", 18, 0.125, GRAY, {}).save(random_backbone(18, 0.125, 8, seed=0), folder)

    return made_once(shared / "training/backbone", make)


@pytest.fixture
def params() -> Params:
    """Params for two short epochs of a tiny network."""
    return demo_params(
        backbone__width=0.125,
        pretrain__epochs=2,
        pretrain__batch_size=8,
        pretrain__crop_px=48,
        pretrain__optimizer__warmup_steps=2,
        finetune__epochs=2,
        finetune__batch_size=4,
        finetune__crop_height_px=32,
        finetune__crop_width_px=40,
        finetune__optimizer__warmup_steps=2,
        runtime__threads=1,
    )


def _name(params: Params, *sections: str) -> str:
    content = params.model_dump_json(include=set(sections))
    return f"{sections[-1]}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


@pytest.fixture(scope="session")
def finetuned(shared: Path, prepared: Path, backbone: Path) -> Callable[[Params], Finished]:
    """The result of `finetune` with these params, trained once for all tests."""

    def finished(params: Params) -> Finished:
        name = _name(params, "backbone", "runtime", "finetune")
        folder = made_once(
            shared / "training" / name,
            lambda folder: Finished.in_folder(
                folder, lambda tick: run_finetune(params, prepared, backbone, folder, tick)
            ),
        )
        return Finished(folder)

    return finished


@pytest.fixture(scope="session")
def pretrained(shared: Path, prepared: Path) -> Callable[[Params], Finished]:
    """The result of `pretrain` with these params, trained once for all tests."""

    def finished(params: Params) -> Finished:
        name = _name(params, "backbone", "runtime", "pretrain")
        folder = made_once(
            shared / "training" / name,
            lambda folder: Finished.in_folder(folder, lambda tick: run_pretrain(params, prepared, folder, tick)),
        )
        return Finished(folder)

    return finished
