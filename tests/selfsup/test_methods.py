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
from pspnet.training.shared.loading import collate
from tests.parameters import METHOD_PARAMS, method_params

GRAY = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(40, 216, (96, 96, 3)).astype(np.uint8)


def build(name: str, **changes: Any) -> Pretext[Any]:
    torch.manual_seed(0)
    return METHODS[name](ResNet(18, 0.125, 16), GRAY, method_params(name, **changes))


def batch(name: str, image: NDArray[np.uint8], **changes: Any) -> dict[str, torch.Tensor]:
    return together([views_of(name, image, seed, **changes) for seed in range(4)])


def together(views: list[Views]) -> dict[str, torch.Tensor]:
    """A batch, as the loader makes it."""
    return collate([{**{key: torch.from_numpy(np.asarray(value, order="C")) for key, value in view.items()},
                     "position": torch.tensor(position)} for position, view in enumerate(views)])  # fmt: skip


def enlarge(pixels: NDArray[np.uint8], times: int) -> NDArray[np.uint8]:
    return pixels.repeat(times, axis=0).repeat(times, axis=1)


def views_of(name: str, image: NDArray[np.uint8], seed: int, **changes: Any) -> Views:
    return METHODS[name].views(lambda: image, method_params(name, **changes), np.random.default_rng(seed))


def test_the_kinds_in_the_params_are_the_methods_and_none() -> None:
    assert METHOD_PARAMS.keys() == {"none", *METHODS}


@pytest.mark.parametrize("name", METHODS)
def test_views_depend_only_on_the_generator(name: str, image: NDArray[np.uint8]) -> None:
    first, again, *others = (views_of(name, image, seed) for seed in (5, 5, *range(6, 16)))
    assert all((first[key] == again[key]).all() for key in first)
    assert any((first[key] != other[key]).any() for key in first for other in others)


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_trains_the_whole_backbone(name: str, image: NDArray[np.uint8]) -> None:
    pretext = build(name)
    pretext(batch(name, image))
    pretext.after_step()  # what fills queues
    loss, figures = pretext(batch(name, image))
    loss.backward()
    assert figures
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pretext.backbone.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_on_four_images_the_loss_halves(name: str) -> None:
    images = [enlarge(np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8), 16) for seed in range(4)]
    settings = {"densecl": {"queue_size": 16}}.get(name, {})
    pretext = build(name, **settings)
    views = together([views_of(name, image, seed, **settings) for seed, image in enumerate(images)])
    optimizer = torch.optim.AdamW(pretext.parameters(), lr=3e-3)
    losses = []
    for _ in range(80):
        loss, _ = pretext(views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pretext.after_step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * max(losses[:10])  # the first loss of a method with an empty queue is 0


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
