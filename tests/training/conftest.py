from pathlib import Path

import pytest

from pspnet.config.params import Params
from pspnet.dataset.synthetic import synthesize
from pspnet.model.preprocessing import Preprocessing
from pspnet.model.pretrained import PretrainedBackbone, random_backbone
from pspnet.stages import prepare
from pspnet.tracking.run import StageRun
from tests.parameters import demo_params

GRAY = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def quiet(done: int, total: int, note: str) -> None:
    """A tick that shows nothing."""


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images, twenty-eight of them with masks."""
    folder = tmp_path_factory.mktemp("data")
    synthesize(folder / "raw", images=40, labelled=28, seed=0, tick=quiet)
    params = demo_params(dataset__group_pattern="(.*)", prepare__val_share=0.2, prepare__test_share=0.2)
    prepare.run(
        params.dataset, params.prepare, raw=folder / "raw", out=folder / "prepared", checkpoints=folder / "checkpoints",
        run=StageRun(), tick=quiet,
    )  # fmt: skip
    return folder / "prepared"


@pytest.fixture
def params() -> Params:
    """Three short epochs of a tiny network."""
    return demo_params(
        backbone__width=0.125,
        pretrain__epochs=3,
        pretrain__batch_size=8,
        pretrain__crop_px=48,
        pretrain__warmup_steps=2,
        finetune__epochs=3,
        finetune__batch_size=4,
        finetune__crop_height_px=48,
        finetune__crop_width_px=64,
        finetune__warmup_steps=2,
        runtime__threads=1,
    )


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    folder = tmp_path / "backbone"
    folder.mkdir()
    PretrainedBackbone("rotation", 18, 0.125, GRAY, {}).save(random_backbone(18, 0.125, 8, seed=0), folder)
    return folder
