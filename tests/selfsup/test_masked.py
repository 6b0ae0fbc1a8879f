"""What the network sees of hidden patches: nothing, at any stage."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pspnet.model.backbone.resnet import ResNet
from pspnet.selfsup.masked import Mask, Masked, OnlyVisible
from pspnet.selfsup.pretext import Pretext
from tests.selfsup.test_methods import GRAY, batch, build, enlarge

SETTINGS = {"patch_px": 16, "hidden_share": 0.6}


@pytest.fixture
def image() -> NDArray[np.uint8]:
    return enlarge(np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8), 4)


def masked(**changes: Any) -> Masked:
    pretext: Pretext[Any] = build("masked", **SETTINGS, **changes)
    assert isinstance(pretext, Masked)
    return pretext


def hidden_in(views: dict[str, Tensor], pretext: Masked) -> Tensor:
    """(N, 1, S, S): True where the pictures show a hidden pixel, which is gray in all colors."""
    return (pretext.pictures(views)["shown"] == 0).all(dim=1, keepdim=True)


def test_the_configured_share_of_the_patches_is_hidden_as_a_whole(image: NDArray[np.uint8]) -> None:
    hidden = hidden_in(batch("masked", image, **SETTINGS), masked())
    patches = hidden.float().reshape(4, 6, 16, 6, 16).mean(dim=(2, 4))
    assert set(patches.flatten().tolist()) == {0.0, 1.0}
    assert patches.sum(dim=(1, 2)).tolist() == [22] * 4  # 0.6 of 36


@pytest.mark.parametrize("training", [True, False])
def test_features_of_visible_patches_do_not_depend_on_hidden_pixels(image: NDArray[np.uint8], training: bool) -> None:
    """At no stage, and not through the statistics of BatchNorm either."""
    pretext, views = masked().train(training), batch("masked", image, **SETTINGS)
    holes = hidden_in(views, pretext)
    noise = torch.randint(0, 256, views["image"].shape, dtype=torch.uint8)
    changed = views | {"image": torch.where(holes, noise, views["image"])}
    seen: list[list[Tensor]] = []
    for one in (views, changed):
        pretext(one)  # leaves the mask
        seen.append(list(pretext.backbone(GRAY(one["image"]).masked_fill(holes, 0))))
    assert all(torch.equal(*pair) for pair in zip(*seen, strict=True))
    assert pretext(views)[0] != pretext(changed)[0]  # the target did change


def test_features_are_0_in_hidden_patches_after_every_stage(image: NDArray[np.uint8]) -> None:
    pretext, views = masked(), batch("masked", image, **SETTINGS)
    holes = hidden_in(views, pretext)
    for features in pretext.backbone(GRAY(views["image"])):
        own = nn.functional.interpolate(holes.float(), features.shape[-2:]).bool().expand_as(features)
        assert (features[own] == 0).all()
        assert (features[~own] != 0).any()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [True, False])
def test_batchnorm_and_its_gradient_know_only_visible_features(training: bool, layout: torch.memory_format) -> None:
    visible = torch.rand(4, 9).argsort(dim=1).view(4, 3, 3) < 4
    mask, norm = Mask(), nn.BatchNorm2d(5).double().train(training)
    mask.show(visible, count=4)
    nn.init.uniform_(norm.weight)
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.uniform_()
    x = torch.randn(4, 5, 6, 6, dtype=torch.double).contiguous(memory_format=layout).requires_grad_()
    cells = visible.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    seen = x.permute(0, 2, 3, 1)[cells]  # (V, C)
    mean, variance = (seen.mean(0), seen.var(0, correction=0)) if training else (norm.running_mean, norm.running_var)
    expected = torch.zeros(4, 6, 6, 5, dtype=torch.double)
    expected[cells] = (seen - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias
    expected, weights = expected.permute(0, 3, 1, 2), torch.randn(4, 5, 6, 6)
    by_hand = torch.autograd.grad((expected * weights).sum(), (x, norm.weight, norm.bias))
    normal = OnlyVisible(norm, mask)(x)
    gradients = torch.autograd.grad((normal * weights).sum(), (x, norm.weight, norm.bias))
    for one, other in zip((normal, *gradients), (expected, *by_hand), strict=True):
        torch.testing.assert_close(one, other)


def test_the_trained_backbone_is_a_plain_resnet_again(image: NDArray[np.uint8]) -> None:
    pretext = masked()
    plain = ResNet(18, 0.125, 16)
    plain.load_state_dict(pretext.trained_backbone().state_dict(), strict=True)
    whole = GRAY(batch("masked", image, **SETTINGS)["image"])
    assert all(map(torch.equal, plain.eval()(whole), pretext.trained_backbone().eval()(whole)))


def test_the_loss_counts_hidden_patches_only(image: NDArray[np.uint8]) -> None:
    pretext, views = masked().eval(), batch("masked", image, **SETTINGS)
    for parameter in pretext.decoder.paint.parameters():
        nn.init.zeros_(parameter)
    loss, figures = pretext(views)
    assert loss == figures["flat_loss"]  # zeros are each patch's mean color
    holes = hidden_in(views, pretext)
    dark = views | {"image": views["image"].masked_fill(~holes, 0)}
    assert torch.isclose(pretext(dark)[0], loss)


def test_the_hardest_patches_are_hidden_first(image: NDArray[np.uint8]) -> None:
    """Half of the hidden patches are those with the highest guesses, the others are drawn."""
    pretext, views = masked(select="hard"), batch("masked", image, **SETTINGS, select="hard")
    assert pretext.difficulty is not None
    guesses = pretext.difficulty(GRAY(views["image"])).flatten(1)
    hidden = hidden_in(views, pretext).float().reshape(4, 6, 16, 6, 16).mean(dim=(2, 4)).flatten(1).bool()
    hardest = guesses.argsort(dim=1, descending=True)[:, :11]
    assert hidden.gather(1, hardest).all()
    assert hidden.sum(dim=1).tolist() == [22] * 4
    assert not hidden.gather(1, guesses.argsort(dim=1, descending=True)[:, :22]).all()


def test_guesses_of_the_loss_learn_from_the_losses(image: NDArray[np.uint8]) -> None:
    pretext, views = masked(select="hard"), batch("masked", image, **SETTINGS, select="hard")
    optimizer = torch.optim.AdamW(pretext.parameters(), lr=3e-3)
    errors = []
    for _ in range(30):
        loss, figures = pretext(views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(figures["difficulty_error"].item())
    assert errors[-1] < 0.5 * errors[0]


def test_a_run_that_paints_no_better_than_mean_colors_is_stopped() -> None:
    pretext = masked()
    flat, better = {"loss": 0.82, "flat_loss": 0.82}, {"loss": 0.81, "flat_loss": 0.82}
    assert pretext.collapse([{"step": 400, **flat}]) is None  # too early to tell
    assert pretext.collapse([{"step": 600, **better}]) is None
    problem = pretext.collapse([{"step": 600, **better}, {"step": 700, **flat}])
    assert str(problem).startswith(
        "pretrain.method: masked: the loss is 0.8200 after 700 steps, no less than if every hidden patch were painted "
        "in its mean color (0.8200), so the backbone has learned nothing; expected less after 500 steps. Change "
    )
