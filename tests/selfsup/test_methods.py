"""Facts that hold for every method, and the task of each one."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pspnet.config.pretrain import PretrainParams
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.backbone.resnet import ResNet
from pspnet.selfsup import METHODS
from pspnet.selfsup.inpainting import Inpainting
from pspnet.selfsup.jigsaw import Jigsaw
from pspnet.selfsup.pretext import Pretext
from pspnet.selfsup.rotation import Rotation
from tests.parameters import demo_params

GRAY = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture
def params() -> PretrainParams:
    params = demo_params().pretrain
    return params.model_copy(update={"jigsaw": params.jigsaw.model_copy(update={"gray_probability": 0.0})})


@pytest.fixture
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(40, 216, (96, 96, 3)).astype(np.uint8)


def build(method: type[Pretext], params: PretrainParams) -> Pretext:
    torch.manual_seed(0)
    return method(ResNet(18, 0.125, 16), GRAY, params)


def batch(method: type[Pretext], image: NDArray[np.uint8], params: PretrainParams) -> dict[str, torch.Tensor]:
    views = [method.views(lambda: image, params, np.random.default_rng(seed)) for seed in range(4)]
    tensors = {name: torch.from_numpy(np.stack([view[name] for view in views])) for name in views[0]}
    return tensors | {"image": tensors["image"].permute(0, 3, 1, 2)}


@pytest.mark.parametrize("name", METHODS)
def test_views_depend_on_the_generator_alone(name: str, image: NDArray[np.uint8], params: PretrainParams) -> None:
    first, again, other = (
        METHODS[name].views(lambda: image, params, np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    assert all((first[key] == again[key]).all() for key in first)
    assert any((first[key] != other[key]).any() for key in first)


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_teaches_the_whole_backbone(name: str, image: NDArray[np.uint8], params: PretrainParams) -> None:
    pretext = build(METHODS[name], params)
    loss, figures = pretext(batch(METHODS[name], image, params))
    loss.backward()
    assert figures
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pretext.backbone.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_a_few_images_can_be_learned_by_heart(name: str, image: NDArray[np.uint8], params: PretrainParams) -> None:
    pretext, views = build(METHODS[name], params), batch(METHODS[name], image, params)
    optimizer = torch.optim.AdamW(pretext.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss, _ = pretext(views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_rotation_turns_the_view_by_its_answer(image: NDArray[np.uint8], params: PretrainParams) -> None:
    seen = set()
    for seed in range(20):
        views = Rotation.views(lambda: image, params, np.random.default_rng(seed))
        turns = int(views["turns"])
        seen.add(turns)
        assert (np.rot90(views["image"], -turns) == image).all()
    assert seen == {0, 1, 2, 3}


def test_jigsaw_patches_lie_where_the_answers_say(image: NDArray[np.uint8], params: PretrainParams) -> None:
    views = Jigsaw.views(lambda: image, params, np.random.default_rng(0))
    grid, gap, side = params.jigsaw.grid, params.jigsaw.gap_px, 96 // params.jigsaw.grid
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
        assert shift.min() == shift.max()  # one brightness shift for the whole patch
        assert abs(shift.max()) <= 16


def test_inpainting_hides_its_share_in_whole_blocks(image: NDArray[np.uint8], params: PretrainParams) -> None:
    hidden = Inpainting.views(lambda: image, params, np.random.default_rng(0))["hidden"][0]
    block = params.inpainting.block_px
    assert hidden.sum() == round(params.inpainting.hidden_share * (96 // block) ** 2) * block**2
    blocks = hidden.reshape(96 // block, block, 96 // block, block).astype(int).sum(axis=(1, 3))
    assert set(np.unique(blocks)) == {0, block**2}


def test_inpainting_network_never_sees_what_is_hidden(image: NDArray[np.uint8], params: PretrainParams) -> None:
    pretext = build(Inpainting, params).eval()
    views = batch(Inpainting, image, params)
    noise = torch.randint_like(views["image"], 256)
    changed = views | {"image": torch.where(views["hidden"], noise, views["image"])}
    seen = [GRAY(v["image"]).masked_fill(v["hidden"], 0) for v in (views, changed)]
    assert torch.equal(*seen)
    # The prediction is the same, so the error outside the holes is too, while the error inside them is not.
    (loss, figures), (other_loss, other_figures) = pretext(views), pretext(changed)
    assert torch.isclose(figures["visible_error"], other_figures["visible_error"])
    assert loss != other_loss
