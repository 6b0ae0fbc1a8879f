"""`pspnet weights import` on the command line."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pspnet.checkout.foreign.formats import FORMATS
from pspnet.cli import tools
from pspnet.model.backbone.pretrained import PretrainedBackbone
from pspnet.model.bundle import Bundle
from tests.command import pspnet
from tests.model.foreign import random_tensors
from tests.oracles.pspnet import HSZHAO, Mode, Oracle
from tests.parameters import ROOT
from tests.raw.rawdata import write

CLASSES = "classes:\n" + "".join(f"  class{number}: {number}\n" for number in range(21))
HSZHAO_FILE = "hszhao_pspnet50_voc"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.save({"epoch": 50, "state_dict": random_tensors(HSZHAO_FILE, narrow=8)}, tmp_path / "train.pth")
    write(tmp_path / "classes.yaml", CLASSES)
    write(tmp_path / "params.yaml", (ROOT / "params.yaml").read_text())
    return tmp_path


def test_a_whole_network_becomes_a_working_bundle_and_a_backbone(folder: Path) -> None:
    words = ("train.pth", "--from", "hszhao", "--out", "backbone", "--bundle", "bundle", "--classes", "classes.yaml")
    done = pspnet("weights", "import", *words, cwd=folder)
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout == (
        "train.pth: 100.0% of the tensors (backbone 275 of 275, pyramid 20 of 20, head 7 of 7, auxiliary_head 7 of 7)\n"
        "backbone: ResNet-50, width 0.125, stem deep\n"
        "bundle: PSPNet with 21 classes, output stride 8, dilation full, align_corners true\n"
    )
    bundle = Bundle.load(folder / "bundle")
    assert bundle.classes == tuple(f"class{number}" for number in range(21))
    assert bundle.pretraining == "hszhao"
    images = torch.randn(1, 3, 41, 57)
    oracle = Oracle(random_tensors(HSZHAO_FILE, narrow=8), HSZHAO, Mode(50, contract=False, align_corners=True))
    with torch.no_grad():
        expected = oracle(images)[0]
        assert (bundle.network(images) - expected).abs().max() <= 1e-5 * expected.abs().max()

    facts = PretrainedBackbone.open(folder / "backbone")
    assert (facts.method, facts.weights, facts.pretraining, facts.stem) == ("none", "hszhao", "hszhao", "deep")
    facts.load_into(bundle.network.backbone, folder / "backbone")

    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    Image.fromarray(rng.integers(256, size=(40, 56, 3), dtype=np.uint8)).save(folder / "photos/a.png")
    done = pspnet("predict", "photos", "--out", "predictions", "--bundle", "bundle", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert np.array(Image.open(folder / "predictions/masks/a.png.png")).shape == (40, 56)


def test_classes_and_colors_come_from_mmsegmentation(tmp_path: Path) -> None:
    names = [f"class{number}" for number in range(19)]
    meta = {"CLASSES": names, "PALETTE": [[number, 0, 7] for number in range(19)]}
    tensors = random_tensors("mmseg_pspnet_r50-d8_cityscapes", narrow=8)
    torch.save({"meta": meta, "state_dict": tensors}, tmp_path / "psp.pth")
    words = ("psp.pth", "--from", "mmseg", "--out", "backbone", "--bundle", "bundle", "--align-corners")
    done = pspnet("weights", "import", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    bundle = Bundle.load(tmp_path / "bundle")
    assert (bundle.classes, bundle.colors[3]) == (tuple(names), (3, 0, 7))
    own = bundle.network.architecture
    assert (own.stem, own.dilation, own.align_corners, own.output_stride) == ("deep_narrow", "contract", True, 8)


def test_a_safetensors_file_becomes_a_backbone_for_gray_images(tmp_path: Path) -> None:
    save_file(random_tensors("timm_resnet50", narrow=8), tmp_path / "model.safetensors")
    words = ("model.safetensors", "--from", "timm", "--out", "backbone", "--channels", "1")
    done = pspnet("weights", "import", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    facts = PretrainedBackbone.open(tmp_path / "backbone")
    assert (facts.image_channels, len(facts.preprocessing.mean)) == (1, 1)


def test_missing_tensors_are_named_and_nothing_is_written(folder: Path) -> None:
    tensors = random_tensors(HSZHAO_FILE, narrow=8)
    del tensors["module.layer2.3.conv2.weight"], tensors["module.cls.1.bias"]
    torch.save(tensors, folder / "part.pth")
    words = ("weights", "import", "part.pth", "--from", "hszhao", "--out", "backbone")
    done = pspnet(*words, cwd=folder)
    assert done.returncode == 1
    assert done.stderr == (
        "part.pth: matches 99.4% of the tensors (2 missing: backbone.layer2.3.conv2.weight, head.1.bias); expected at "
        "least 100.0%. If the rest may be random or left out, lower --min-coverage.\n"
    )
    assert not (folder / "backbone").exists()
    done = pspnet(*words, "--min-coverage", "0.99", cwd=folder)
    assert done.returncode == 0
    assert (
        "2 missing: backbone.layer2.3.conv2.weight, head.1.bias. It is initialized at random or left out."
        in done.stderr
    )
    assert (folder / "backbone/backbone.safetensors").exists()


def test_fewer_classes_lead_to_a_new_classifier_and_a_warning(folder: Path) -> None:
    write(folder / "two.yaml", "classes:\n  road: 0\n  sky: 1\n")
    words = ("train.pth", "--from", "hszhao", "--out", "backbone", "--bundle", "bundle", "--classes", "two.yaml")
    done = pspnet("weights", "import", *words, cwd=folder)
    assert done.stderr == (
        "The file has 21 classes and two.yaml has 2: the classifier is new and predicts nothing until it is trained.\n"
    )
    assert Bundle.load(folder / "bundle").network.architecture.classes == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--from", "hszhao", "--output-stride", "4"), "--output-stride: is 4; expected 8, 16 or 32\n"),
        (
            ("--from", "hszhao", "--classes", "classes.yaml"),
            "--classes: gives the classes of a bundle; expected --bundle as well\n",
        ),
        (
            ("--from", "hszhao", "--bundle", "b", "--channels", "1"),
            "--channels: is 1, but a bundle predicts RGB images; expected 3 with --bundle\n",
        ),
        (
            ("--from", "hszhao", "--bundle", "b"),
            "train.pth: has 21 classes but names none of them; expected a name for each. Name them in the order of ",
        ),
        (
            ("--from", "hszhao", "--bundle", "backbone/b"),
            "--bundle: is backbone/b, and --out is backbone; expected separate folders",
        ),
        (("--from", "dino", "--bundle", "b"), "train.pth: has no tensor names in dino format (found layer0.0.weight, "),
    ],
)
def test_contradictory_options_are_refused(folder: Path, words: tuple[str, ...], message: str) -> None:
    done = pspnet("weights", "import", "train.pth", "--out", "backbone", *words, cwd=folder)
    assert done.stderr.startswith(message)
    assert done.returncode == 1
    assert not (folder / "backbone").exists()


@pytest.mark.parametrize(("option", "facts"), [("--out", "backbone.json"), ("--bundle", "model.json")])
def test_a_folder_with_other_files_is_left_alone(folder: Path, option: str, facts: str) -> None:
    write(folder / "mine/notes.txt", "dear")
    words = ("train.pth", "--from", "hszhao", "--classes", "classes.yaml", "--bundle", "bundle", option, "mine")
    done = pspnet("weights", "import", *words, cwd=folder)
    assert done.returncode == 1
    assert done.stderr == (
        f"mine: exists without {facts} and would be replaced; expected an empty folder or none. "
        f"Choose another with {option}.\n"
    )
    assert [path.name for path in (folder / "mine").iterdir()] == ["notes.txt"]


def test_importing_only_a_bundle_leaves_the_backbone_of_the_pipeline_unchanged(folder: Path) -> None:
    words = ("train.pth", "--from", "hszhao", "--bundle", "bundle", "--classes", "classes.yaml")
    for _ in range(2):  # an existing bundle can be replaced
        assert pspnet("weights", "import", *words, cwd=folder).returncode == 0
    assert (folder / "bundle/model.json").exists()
    assert not (folder / "data").exists()


@pytest.mark.e2e  # this test starts DVC
def test_the_default_folder_is_refused_outside_dvc(folder: Path) -> None:
    done = pspnet("weights", "import", "train.pth", "--from", "hszhao", cwd=folder)
    assert done.returncode == 1
    assert "dvc root: failed" in done.stderr
    assert not (folder / "data").exists()


def test_from_accepts_exactly_the_known_projects(tmp_path: Path) -> None:
    assert tuple(FORMATS) == get_args(tools.Project)
    refused = pspnet("weights", "import", "train.pth", "--from", "caffe", cwd=tmp_path)
    assert (refused.returncode, "'caffe' is not one of 'hszhao', 'mmseg', " in refused.stderr) == (2, True)
