import importlib.util
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
import torch
from onnxruntime import InferenceSession
from torch import Tensor, nn

from pspnet.cli import prediction
from pspnet.errors import UserError
from pspnet.model.backbone.digest import digest
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.backbone.resnet import BLOCKS
from pspnet.model.bundle import Bundle
from pspnet.model.network import Architecture, PSPNet
from pspnet.prediction.export import FORMATS, SIZES, export
from tests.command import pspnet
from tests.files import made_once

PREPROCESSING = Preprocessing((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
CLASSES = ("sky", "road", "bus", "tree")
COLORS = tuple((10 * k, 0, 255 - k) for k in range(len(CLASSES)))
PLAIN = Architecture(18, 0.125, 8, len(CLASSES), 0.1)
# Networks that together differ from PLAIN in every possible way. An export takes seconds, so each network combines
# several differences.
ARCHITECTURES = {
    "R50, stride 16, narrow stem, corners": Architecture(
        50, 0.125, 16, len(CLASSES), 0.1, stem="deep_narrow", align_corners=True
    ),
    "R18, stride 32, all others": Architecture(
        18, 0.125, 32, len(CLASSES), 0.1,
        stem="deep", dilation="contract", decoder="low_level", pyramid_weights="learned",
    ),
}  # fmt: skip


def make_bundle(architecture: Architecture, folder: Path) -> Path:
    """Save a network with statistics from data, and with logits about as large as those of a trained network."""
    torch.manual_seed(0)
    network = PSPNet(architecture)
    with torch.no_grad():
        network(torch.randn(2, 3, 96, 96))
        network.head[-1].weight.mul_(20)  # type: ignore[operator]
    folder.mkdir()
    Bundle(network, PREPROCESSING, CLASSES, COLORS, "none", {}, "").save(folder)
    return folder


@pytest.fixture(scope="session")
def exports(shared: Path) -> Path:
    return made_once(shared / "export", make_exports)


def make_exports(folder: Path) -> None:
    """Create a bundle and export it to every format."""
    bundle = make_bundle(PLAIN, folder / "segmenter")
    for form in FORMATS:
        parities = export(bundle, form, folder / f"exported.{form}", 1e-4)
        assert [parity.size for parity in parities] == list(SIZES)


@pytest.fixture(scope="session")
def bundle(exports: Path) -> Path:
    return exports / "segmenter"


@pytest.fixture(params=list(FORMATS))
def exported(request: pytest.FixtureRequest, exports: Path) -> Path:
    return exports / f"exported.{request.param}"


def runner(path: Path) -> Callable[[Tensor], Tensor]:
    """Open the file as a user without our code would."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def metadata(path: Path) -> Any:
    if path.suffix == ".onnx":
        return json.loads({entry.key: entry.value for entry in onnx.load(path).metadata_props}["pspnet"])
    files = {"pspnet": ""}
    torch.export.load(path, extra_files=files)
    return json.loads(files["pspnet"])


@pytest.mark.e2e  # this starts no process, but takes half a minute
@pytest.mark.parametrize("form", FORMATS)
def test_every_network_can_be_exported(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer blocks than in R18 and R50: more would test nothing new."""
    for depth in (18, 50):
        monkeypatch.setitem(BLOCKS, depth, (1, 1, 2, 2))
    for name, architecture in ARCHITECTURES.items():
        own = make_bundle(architecture, tmp_path / name)
        parities = export(own, form, tmp_path / f"{name}.{form}", 1e-4)
        assert [parity.size for parity in parities] == list(SIZES)
        assert all(parity.other_class <= 1e-3 for parity in parities)


@pytest.mark.parametrize("size", [(1, 33, 33), (4, 150, 200), (1, 61, 301)])
def test_the_exported_file_agrees_with_the_bundle_at_untested_sizes(
    exported: Path, bundle: Path, size: tuple[int, int, int]
) -> None:
    """The input is raw pixels, because the exported graph includes the bundle's preprocessing."""
    images, height, width = size
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (images, 3, height, width)).astype(np.uint8))
    model = Bundle.load(bundle)
    with torch.inference_mode():
        expected = model.network(model.preprocessing(pixels))
        found = runner(exported)(pixels)
    assert found.shape == (images, len(CLASSES), height, width)
    assert expected.abs().max() > 1
    assert (found - expected).abs().max() < 1e-4


def test_the_metadata_describes_the_bundle(exported: Path, bundle: Path) -> None:
    facts = metadata(exported)
    assert facts["classes"] == list(CLASSES)
    assert facts["colors"] == [list(color) for color in COLORS]
    assert facts["preprocessing"] == {"mean": list(PREPROCESSING.mean), "std": list(PREPROCESSING.std)}
    assert facts["bundle"] == digest(bundle)
    assert facts["architecture"] == asdict(PLAIN)


def test_onnx_holds_no_adaptive_pooling_and_pt2_holds_torchs(exports: Path) -> None:
    onnx.checker.check_model(exports / "exported.onnx", full_check=True)
    program = torch.export.load(exports / "exported.pt2")
    calls = [str(node.target) for node in program.graph.nodes]
    assert sum("adaptive_avg_pool2d" in call for call in calls) == 4


def test_a_file_that_computes_something_else_is_not_written(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model.pt2"
    out.write_text("of yesterday")
    monkeypatch.setattr(nn, "AdaptiveAvgPool2d", nn.AdaptiveMaxPool2d)
    with pytest.raises(UserError) as error:
        export(bundle, "pt2", out, 1e-4)
    assert "5 problems:" in str(error.value)
    assert f"{out}: would differ from the bundle by" in str(error.value)
    assert "on 3 images of 97 x 65 px; expected at most 1.0e-04 (--tolerance). The file was not written." in str(
        error.value
    )
    assert out.read_text() == "of yesterday"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt2"]


def test_without_the_extra_the_command_says_what_to_install(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name.startswith("onnx") else find(name, *rest)
    )
    done = pspnet("export", bundle, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "export --format onnx: needs onnx, onnxruntime, onnxscript, which cannot be imported. "
        "Install the extra: uv pip install -e '.[export]'\n"
    )


def test_the_command_prints_the_differences_and_the_path(bundle: Path, tmp_path: Path) -> None:
    done = pspnet("export", str(bundle), "--format", "pt2", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "segmenter.pt2\n")
    assert "2 x 128 x 160 px: logits differ by at most" in done.stderr
    assert (tmp_path / "segmenter.pt2").is_file()
    refused = pspnet("export", str(bundle), "--format", "tflite", cwd=tmp_path)
    assert refused.returncode == 2
    assert "'tflite' is not one of 'onnx', 'pt2'" in refused.stderr


def test_the_command_offers_every_format() -> None:
    assert tuple(FORMATS) == get_args(prediction.ExportFormat)
