"""The linear probe and the page of pretraining."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.evaluation.pretraining.page import write_page
from pspnet.evaluation.pretraining.probing import Probe, in_words, probe
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.backbone.pretrained import PretrainedBackbone, random_backbone
from pspnet.model.backbone.resnet import ResNet
from tests.command import pspnet
from tests.parameters import ROOT
from tests.training.conftest import prepared, quiet

__all__ = ["prepared"]
CPU, GRAY = torch.device("cpu"), Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


class Telling(ResNet):
    """Its features are the classes themselves: each street scene's mask, looked up by its image."""

    def __init__(self, dataset: PreparedDataset) -> None:
        super().__init__(18, 0.125, 8)
        reader, index = dataset.reader(), dataset.index()
        rows = index[index["has_mask"]][["shard", "row"]].itertuples(index=False, name=None)
        self._masks = {reader.image(*place).tobytes(): reader.mask(*place) for place in rows}
        self.classes = len(dataset.classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        pixels = GRAY.pixels(images)[0].permute(1, 2, 0).numpy().tobytes()
        mask = torch.from_numpy(self._masks[pixels].astype(np.int64))
        features = nn.functional.one_hot(mask, 256)[..., : self.classes].permute(2, 0, 1)[None].float()
        return features, features, features, features


def test_features_that_tell_the_classes_apart_get_a_mean_iou_of_1(prepared: Path) -> None:
    dataset = PreparedDataset.open(prepared)
    found = probe(Telling(dataset), GRAY, "telling", dataset, CPU, quiet)
    assert found.mean_iou > 0.99
    assert 0.05 < probe(random_backbone(18, 0.125, 8, seed=0), GRAY, "random", dataset, CPU, quiet).mean_iou < 0.9


def test_a_probe_changes_nothing_and_is_repeatable(prepared: Path) -> None:
    dataset, backbone = PreparedDataset.open(prepared), random_backbone(18, 0.125, 16, seed=0)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    first, again = (probe(backbone, GRAY, "random", dataset, CPU, quiet) for _ in range(2))
    assert np.array_equal(first.class_iou, again.class_iou, equal_nan=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def test_statistics_of_the_pretext_task_do_not_count(prepared: Path) -> None:
    """They are those of images with holes, or of no images at all, so the probe measures its own."""
    dataset, backbone = PreparedDataset.open(prepared), random_backbone(18, 0.125, 16, seed=0)
    first = probe(backbone, GRAY, "random", dataset, CPU, quiet)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.fill_(7)
    assert np.array_equal(
        first.class_iou, probe(backbone, GRAY, "random", dataset, CPU, quiet).class_iou, equal_nan=True
    )


def of(weights: str, mean_iou: float) -> Probe:
    return Probe(weights, ("road", "<car>"), np.array([mean_iou + 0.1, mean_iou - 0.1]))


@pytest.mark.parametrize(("trained", "how"), [(0.42, "better than"), (0.355, "about as well as"), (0.3, "worse than")])
def test_the_sentence_says_which_features_are_better(trained: float, how: str) -> None:
    said = in_words([of("jigsaw", trained), of("random weights", 0.35)])
    assert f" apart {how} one on the features of random weights: mIoU {trained:.3f} against 0.350." in said


def test_the_page_shows_the_comparison_the_pictures_and_the_curves(tmp_path: Path) -> None:
    history = pd.DataFrame({"step": [10, 20], "epoch": [1, 2], "loss": [0.8, 0.7], "spread": [0.9, 0.95]})
    gray = np.full((8, 8, 3), 128, np.uint8)
    pictures = [("images/<a>.png", {"shown": gray, "reconstructed": gray, "original": gray})]
    probes = [of("masked", 0.42), of("random weights", 0.35)]
    write_page("masked", history, probes, pictures, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert in_words(probes) in page
    assert re.findall(r"<b>(0\.\d+)</b>", page) == ["0.420", "0.350"]
    assert page.count("data:image/png") == 3
    assert "images/&lt;a&gt;.png" in page and '<th scope="row">&lt;car&gt;</th>' in page
    assert "<h4>spread</h4>" in page
    assert page.count("<polyline") == 2
    assert 'src="http' not in page


def test_without_a_method_or_without_masks_the_page_says_so(tmp_path: Path) -> None:
    write_page("none", pd.DataFrame(columns=["step", "epoch", "loss"]), [], [], tmp_path / "none.html")
    assert "Skipped: <code>pretrain.method</code> is <code>none</code>" in (tmp_path / "none.html").read_text()
    history = pd.DataFrame({"step": [10], "epoch": [1], "loss": [0.8]})
    write_page("rotation", history, [], [], tmp_path / "page.html")
    assert "Not measured, because train or val has no masks." in (tmp_path / "page.html").read_text()


@pytest.fixture
def checkout(prepared: Path, tmp_path: Path) -> Path:
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("width: 0.25", "width: 0.125"))
    for method in ("jigsaw", "none"):
        (tmp_path / method).mkdir()
        PretrainedBackbone(method, 18, 0.125, GRAY, {}).save(random_backbone(18, 0.125, 8, seed=1), tmp_path / method)
    (tmp_path / "prepared").symlink_to(prepared)
    return tmp_path


def test_the_command_prints_a_table_and_a_sentence(checkout: Path) -> None:
    done = pspnet("probe", "--prepared", "prepared", "--backbone", "jigsaw", cwd=checkout)
    assert done.returncode == 0, done.stderr
    header, *_, sentence = done.stdout.splitlines()
    assert header.split() == ["IoU", "on", "val", "┃", "jigsaw", "┃", "random", "weights"]
    means = re.search(r"^mean +│ +(0\.\d+) │ +(0\.\d+)$", done.stdout, re.M)
    assert means
    assert sentence.startswith("A linear classifier on the frozen features tells the classes of val apart ")
    assert sentence.endswith(f"mIoU {means[1]} against {means[2]}.")


def test_random_weights_are_not_compared_with_themselves(checkout: Path) -> None:
    done = pspnet("probe", "--prepared", "prepared", "--backbone", "none", cwd=checkout)
    expected = "none: has random weights; expected a pretrained or imported backbone. Set pretrain.method or "
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(expected)
