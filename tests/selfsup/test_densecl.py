"""The queue, the second network and the spread."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pspnet.selfsup import METHODS
from pspnet.selfsup.densecl import DIMENSIONS, TEMPERATURE, DenseCL, contrast
from tests.parameters import method_params
from tests.selfsup.test_methods import batch, build, enlarge


@pytest.fixture
def image() -> NDArray[np.uint8]:
    return enlarge(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8), 4)


def densecl(**changes: Any) -> DenseCL:
    pretext = build("densecl", **{"queue_size": 16, **changes})
    assert isinstance(pretext, DenseCL)
    return pretext


def first_step(pretext: DenseCL, views: dict[str, Tensor], rate: float = 0.1) -> None:
    loss, _ = pretext(views)
    loss.backward()
    torch.optim.SGD(pretext.parameters(), lr=rate).step()
    pretext.after_step()


def test_two_views_come_from_two_crops_of_one_image() -> None:
    crops = iter(np.full((2, 8, 8, 3), [[[[10]]], [[[20]]]], np.uint8))
    views = METHODS["densecl"].views(
        lambda: next(crops), method_params("densecl", gray_probability=0.0), np.random.default_rng(0)
    )
    assert (views["image"] == 10).all() and (views["other"] == 20).all()


def test_the_queue_holds_the_newest_embeddings_in_order(image: NDArray[np.uint8]) -> None:
    pretext = densecl()
    for turn in range(5):
        views = batch("densecl", image) | {"position": 4 * turn + torch.arange(4)}
        pretext(views)
        pretext.after_step()
    assert pretext.positions_queue.tolist() == list(range(4, 20))
    assert torch.allclose(pretext.queue.norm(dim=1), torch.ones(16))
    assert torch.allclose(pretext.places_queue.norm(dim=1), torch.ones(16))


def test_parts_of_a_step_enter_the_queue_after_the_step(image: NDArray[np.uint8]) -> None:
    pretext, views = densecl(), batch("densecl", image)
    before = pretext.queue.clone()
    for part in ([0, 1], [2, 3]):
        pretext({name: tensor[part] for name, tensor in views.items()})
        assert torch.equal(pretext.queue, before)
    pretext.after_step()
    assert pretext.positions_queue[-4:].tolist() == [0, 1, 2, 3]


def test_an_image_is_not_told_apart_from_itself_or_from_an_empty_queue() -> None:
    embeddings = F.normalize(torch.randn(2, DIMENSIONS), dim=1)
    others = torch.cat([embeddings, F.normalize(torch.randn(1, DIMENSIONS), dim=1)])
    spared = torch.tensor([[True, True, False], [False, True, False]])
    loss = contrast(embeddings, embeddings, others, spared)
    similar = embeddings @ others.T / TEMPERATURE
    by_hand = [
        torch.logsumexp(torch.stack([similar[row, row], *(similar[row, other] for other in counting)]), 0)
        - similar[row, row]
        for row, counting in enumerate(([2], [0, 2]))
    ]
    assert torch.isclose(loss, torch.stack(by_hand).mean())


def test_the_first_loss_is_0_because_the_queue_is_empty(image: NDArray[np.uint8]) -> None:
    assert densecl()(batch("densecl", image))[0] == 0


def test_the_second_network_follows_the_first_without_gradients(image: NDArray[np.uint8]) -> None:
    pretext, views = densecl(momentum=0.99), batch("densecl", image)
    first_step(pretext, views)
    held = pretext.second_backbone.get_parameter("conv1.weight").clone()
    first_step(pretext, views, rate=10.0)
    kept = 3 / 12  # (1 + 2) / (10 + 2) after the second step, which is less than 0.99
    moved = kept * held + (1 - kept) * pretext.backbone.get_parameter("conv1.weight")
    assert torch.allclose(pretext.second_backbone.get_parameter("conv1.weight"), moved, atol=1e-6)
    assert not torch.equal(
        pretext.second_backbone.get_parameter("conv1.weight"), pretext.backbone.get_parameter("conv1.weight")
    )
    assert all(parameter.grad is None for parameter in pretext.second_backbone.parameters())


def test_the_second_network_normalizes_by_averages_so_an_embedding_depends_on_its_own_image_alone(
    image: NDArray[np.uint8],
) -> None:
    pretext, views = densecl().train(), batch("densecl", image)
    first_step(pretext, views)
    together, alone = (
        pretext.second_encoder(pretext.second_backbone(pretext.preprocessing(part))[-1])[0]
        for part in (views["other"], views["other"][:1])
    )
    assert torch.allclose(together[:1], alone, atol=1e-5)


def test_the_spread_of_equal_embeddings_is_0_and_that_of_random_ones_1(image: NDArray[np.uint8]) -> None:
    pretext, views = densecl(), batch("densecl", image)
    pretext.train()
    for name, expected in (("random", 1.0), ("equal", 0.0)):
        new = torch.randn(400, DIMENSIONS) if name == "random" else torch.ones(400, DIMENSIONS)
        pretext._new = [(F.normalize(new, dim=1), F.normalize(new, dim=1), torch.arange(400))]
        pretext.after_step()
        assert pretext(views)[1]["spread"].item() == pytest.approx(expected, abs=0.02)
        pretext._new = []


def test_a_dead_projector_is_seen_as_a_collapse(image: NDArray[np.uint8]) -> None:
    pretext, views = densecl(), batch("densecl", image)
    for module in (pretext.encoder, pretext.second_encoder):
        layer = module.get_submodule("whole.0")
        assert isinstance(layer, nn.Linear)
        nn.init.constant_(layer.bias, -1e6)  # no unit of the next layer is ever active
    for _ in range(3):
        first_step(pretext, views)
    spread = pretext(views)[1]["spread"].item()
    problem = pretext.collapse([{"step": 300, "spread": spread}])
    assert spread < 1e-3
    assert str(problem).startswith(
        "pretrain.method: densecl: the spread of the embeddings is 0.000 after 300 steps, so"
    )
    assert pretext.collapse([{"step": 100, "spread": spread}]) is None  # too early to tell
    assert pretext.collapse([{"step": 300, "spread": 0.9}]) is None
