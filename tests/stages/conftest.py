from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pspnet.config.params import Params
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.demo.streets import synthesize
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.bundle import Bundle
from pspnet.model.network import Architecture, PSPNet
from pspnet.stages import prepare
from pspnet.tracking.run import StageRun
from tests.parameters import demo_params
from tests.training.conftest import quiet


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty street scenes with masks, each with an unannotated corner."""
    folder = tmp_path_factory.mktemp("stages")
    synthesize(folder / "raw", images=30, labeled=30, seed=0, tick=quiet)
    for path in (folder / "raw/masks").iterdir():
        mask = np.array(Image.open(path))
        mask[:20, :30] = 255
        Image.fromarray(mask).save(path)
    params = demo_params(dataset__group_pattern="(.*)")
    prepare.run(
        params.dataset, params.prepare, raw=folder / "raw", out=folder / "prepared", checkpoints=folder / "checkpoints",
        run=StageRun(), tick=quiet,
    )  # fmt: skip
    return folder / "prepared"


@pytest.fixture(scope="session")
def bundle(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network whose predictions show several classes."""
    dataset = PreparedDataset.open(prepared)
    torch.manual_seed(0)
    network = PSPNet(Architecture(18, 0.125, 8, len(dataset.classes), dropout=0.1))
    preprocessing = Preprocessing(dataset.mean, dataset.std)
    folder = tmp_path_factory.mktemp("bundle")
    Bundle(network, preprocessing, dataset.classes, dataset.colors, "none", {}, "").save(folder)
    return folder


@pytest.fixture
def foreign_bundle(bundle: Path, tmp_path: Path) -> Path:
    """The same network as in `bundle`, with different class names."""
    model = Bundle.load(bundle)
    folder = tmp_path / "foreign"
    folder.mkdir()
    replace(model, classes=tuple(f"class{number}" for number in range(len(model.classes)))).save(folder)
    return folder


@pytest.fixture
def params() -> Params:
    return demo_params(evaluate__pictures=2, runtime__threads=1)
