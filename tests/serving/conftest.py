import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pspnet.dataset.classes import default_color
from pspnet.model.bundle import Bundle
from pspnet.model.network import Architecture, PSPNet
from pspnet.model.preprocessing import Preprocessing
from tests.parameters import ROOT
from tests.serving.processes import environment

CLASSES = ("sky", "road", "building", "tree")

SAVE = """
import sys
from pathlib import Path
from pspnet.offline import go_offline
go_offline()
from pspnet.config.params import load_params
from pspnet.packaging import save_version
bundle, params, folder = map(Path, sys.argv[1:])
extra = {"params.yaml": params, "decisions": params.parent / "docs/decisions"}
save_version(bundle, load_params(params), extra, folder)
assert "torch" not in sys.modules
"""


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that has learnt nothing, but whose predictions show several classes."""
    torch.manual_seed(0)
    network = PSPNet(Architecture(18, 0.125, 8, len(CLASSES), dropout=0.1))
    preprocessing = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    colors = tuple(default_color(number) for number in range(len(CLASSES)))
    folder = tmp_path_factory.mktemp("serving") / "segmenter"
    folder.mkdir()
    Bundle(network, preprocessing, CLASSES, colors, "none", {}, "").save(folder)
    return folder


@pytest.fixture(scope="session")
def saving(bundle: Path) -> subprocess.CompletedProcess[str]:
    """A version, saved beside the bundle by a process of its own: MLflow warns too much to be imported by pytest."""
    return subprocess.run(
        [sys.executable, "-c", SAVE, str(bundle), str(ROOT / "params.yaml"), str(bundle.with_name("version"))],
        env=environment(MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false"),
        cwd=bundle.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


@pytest.fixture(scope="session")
def version(bundle: Path, saving: subprocess.CompletedProcess[str]) -> Path:
    assert saving.returncode == 0, saving.stderr
    return bundle.with_name("version")


@pytest.fixture(scope="session")
def newer_checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Today's package, in which the network has since been changed: it would say the opposite."""
    folder = tmp_path_factory.mktemp("newer")
    shutil.copytree(ROOT / "pspnet", folder / "pspnet", ignore=shutil.ignore_patterns("__pycache__"))
    network = folder / "pspnet/model/network.py"
    changed = network.read_text().replace("return _enlarge(self.coarse_logits(", "return -_enlarge(self.coarse_logits(")
    assert changed != network.read_text()
    network.write_text(changed)
    return folder
