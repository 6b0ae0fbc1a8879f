import shutil
import warnings
from pathlib import Path

import pytest
import torch

from pspnet.config.params import load_params
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.bundle import Bundle
from pspnet.model.network import Architecture, PSPNet
from pspnet.raw.classes import default_color
from pspnet.registry.packaging import save_version
from tests.files import made_once
from tests.parameters import ROOT

CLASSES = ("sky", "road", "building", "tree")
PARAMS = ROOT / "params.yaml"
EXTRA = {"params.yaml": PARAMS, "decisions": ROOT / "docs/decisions"}


@pytest.fixture(scope="session")
def bundle(shared: Path) -> Path:
    """An untrained network whose predictions show several classes."""
    return made_once(shared / "serving/segmenter", make_bundle)


def make_bundle(folder: Path) -> None:
    torch.manual_seed(0)
    network = PSPNet(Architecture(18, 0.125, 8, len(CLASSES), dropout=0.1))
    preprocessing = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    colors = tuple(default_color(number) for number in range(len(CLASSES)))
    Bundle(network, preprocessing, CLASSES, colors, "none", {}, "").save(folder)


@pytest.fixture(scope="session")
def version(bundle: Path, shared: Path) -> Path:
    """A version of the bundle, saved in this process."""

    def save(folder: Path) -> None:
        with warnings.catch_warnings(action="ignore"):  # MLflow warns about its own code
            save_version(bundle, load_params(PARAMS), EXTRA, folder)

    return made_once(shared / "serving/version", save)


@pytest.fixture(scope="session")
def newer_checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Today's package with a changed network, which would predict the opposite."""
    folder = tmp_path_factory.mktemp("newer")
    shutil.copytree(ROOT / "pspnet", folder / "pspnet", ignore=shutil.ignore_patterns("__pycache__"))
    network = folder / "pspnet/model/network.py"
    changed = network.read_text().replace("return _enlarge(self.coarse_logits(", "return -_enlarge(self.coarse_logits(")
    assert changed != network.read_text()
    network.write_text(changed)
    return folder
