"""Properties that every method has, and each method's own task."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.backbone.resnet import ResNet
from pspnet.selfsup import METHODS
from pspnet.selfsup.pretext import Pretext, Views
from tests.parameters import METHOD_PARAMS, method_params

GRAY = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(40, 216, (96, 96, 3)).astype(np.uint8)


def build(name: str) -> Pretext[Any]:
    torch.manual_seed(0)
    return METHODS[name](ResNet(18, 0.125, 16), GRAY, method_params(name))


def batch(name: str, image: NDArray[np.uint8]) -> dict[str, torch.Tensor]:
    views = [views_of(name, image, seed) for seed in range(4)]
    tensors = {name: torch.from_numpy(np.stack([view[name] for view in views])) for name in views[0]}
    return {name: tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 and tensor.dtype == torch.uint8 else tensor
            for name, tensor in tensors.items()}  # fmt: skip


def views_of(name: str, image: NDArray[np.uint8], seed: int, **changes: Any) -> Views:
    return METHODS[name].views(lambda: image, method_params(name, **changes), np.random.default_rng(seed))


def test_the_kinds_in_the_params_are_the_methods_and_none() -> None:
    assert METHOD_PARAMS.keys() == {"none", *METHODS}


@pytest.mark.parametrize("name", METHODS)
def test_views_depend_only_on_the_generator(name: str, image: NDArray[np.uint8]) -> None:
    first, again, other = (views_of(name, image, seed) for seed in (5, 5, 6))
    assert all((first[key] == again[key]).all() for key in first)
    assert any((first[key] != other[key]).any() for key in first)


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_trains_the_whole_backbone(name: str, image: NDArray[np.uint8]) -> None:
    pretext = build(name)
    loss, figures = pretext(batch(name, image))
    loss.backward()
    assert figures
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pretext.backbone.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_a_few_images_can_be_memorized(name: str, image: NDArray[np.uint8]) -> None:
    pretext, views = build(name), batch(name, image)
    optimizer = torch.optim.AdamW(pretext.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss, _ = pretext(views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_rotation_rotates_the_view_by_its_answer(image: NDArray[np.uint8]) -> None:
    seen = set()
    for seed in range(20):
        views = views_of("rotation", image, seed)
        turns = int(views["turns"])
        seen.add(turns)
        assert (np.rot90(views["image"], -turns) == image).all()
    assert seen == {0, 1, 2, 3}


def test_jigsaw_patches_are_where_the_answers_say(image: NDArray[np.uint8]) -> None:
    grid, gap, side = 3, 2, 32
    views = views_of("jigsaw", image, seed=0, grid=grid, gap_px=gap, gray_probability=0.0)
    assert sorted(views["origins"].ravel().tolist()) == list(range(grid**2))
    for place, origin in enumerate(views["origins"].ravel()):
        inner = [
            picture[
                side * (number // grid) + gap : side * (number // grid + 1) - gap,
                side * (number % grid) + gap : side * (number % grid + 1) - gap,
            ].astype(int)
            for picture, number in ((views["image"], place), (image, int(origin)))
        ]
        shift = inner[0] - inner[1]
        assert shift.min() == shift.max()  # the whole patch gets the same brightness shift
        assert abs(shift.max()) <= 16


def test_inpainting_hides_the_configured_share_in_whole_blocks(image: NDArray[np.uint8]) -> None:
    block = 16
    hidden = views_of("inpainting", image, seed=0, block_px=block, hidden_share=0.4)["hidden"][0]
    assert hidden.sum() == 14 * block**2  # of 36 blocks
    blocks = hidden.reshape(96 // block, block, 96 // block, block).astype(int).sum(axis=(1, 3))
    assert set(np.unique(blocks)) == {0, block**2}


def test_the_inpainting_network_never_sees_what_is_hidden(image: NDArray[np.uint8]) -> None:
    pretext, views = build("inpainting").eval(), batch("inpainting", image)
    noise = torch.randint_like(views["image"], 256)
    changed = views | {"image": torch.where(views["hidden"], noise, views["image"])}
    seen = [GRAY(v["image"]).masked_fill(v["hidden"], 0) for v in (views, changed)]
    assert torch.equal(*seen)
    # The prediction is the same, so only the error inside the holes changes, not the error outside the holes.
    (loss, figures), (other_loss, other_figures) = pretext(views), pretext(changed)
    assert torch.isclose(figures["visible_error"], other_figures["visible_error"])
    assert loss != other_loss
