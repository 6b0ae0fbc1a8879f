"""torchvision's weights are read from its cache. Without the cached file and without a network, a message says what to
do.
"""

from pathlib import Path

import pytest
import torch

from pspnet.errors import Busy, UserError
from pspnet.model.backbone.imagenet import load_imagenet
from pspnet.model.backbone.resnet import ResNet
from tests.model.foreign import Trap, random_tensors

CACHED = "checkpoints/resnet18-f37072fd.pth"  # torchvision's name for the file


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens at this address
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    return tmp_path / "hub"


def test_cached_weights_load_with_and_without_batch_counts(hub: Path) -> None:
    tensors = random_tensors("torchvision_resnet18")
    older = {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    for held in (tensors, older):
        torch.save(held, hub / CACHED)
        backbone = ResNet(18, 1.0, 8)
        load_imagenet(backbone)
        for name, tensor in backbone.state_dict().items():
            assert torch.equal(tensor, held.get(name, torch.tensor(0)))


def test_a_cache_with_different_weights_is_refused(hub: Path) -> None:
    tensors = random_tensors("torchvision_resnet18")
    del tensors["layer1.0.bn1.bias"]
    torch.save(tensors, hub / CACHED)
    with pytest.raises(UserError, match=r"resnet18-f37072fd.pth: does not fit this network: 1 missing \(layer1.0.bn1"):
        load_imagenet(ResNet(18, 1.0, 8))


def test_code_in_a_cached_file_is_not_run(hub: Path, tmp_path: Path) -> None:
    torch.save({"trap": Trap(tmp_path / "sprung")}, hub / CACHED)
    with pytest.raises(
        UserError, match=r"checkpoints: contains no tensors .* Remove it, and it will be downloaded again."
    ):
        load_imagenet(ResNet(18, 1.0, 8))
    assert not (tmp_path / "sprung").exists()


def test_the_offline_message_names_the_url_and_the_alternatives(hub: Path) -> None:
    with pytest.raises(Busy) as caught:
        load_imagenet(ResNet(18, 1.0, 8))
    message = str(caught.value)
    assert message.startswith(
        "backbone.weights: imagenet: https://download.pytorch.org/models/resnet18-f37072fd.pth could not be fetched ("
    )
    assert f"and is not in {hub}/checkpoints; expected a connection, or the file in that folder." in message
    assert "`pspnet weights import FILE --from torchvision` and backbone.weights: imported." in message
