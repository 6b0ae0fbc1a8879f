import inspect
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from pspnet.config.predict import PredictParams
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.network import Architecture, PSPNet
from pspnet.prediction.image.predictor import Member, Predictor
from pspnet.prediction.image.protocol import PredictionProtocol
from pspnet.prediction.image.windows import shares, windows
from tests.predicting import predictor

CLASSES = 4


def member(seed: int = 0, mean: float = 0.5) -> Member:
    torch.manual_seed(seed)
    network = PSPNet(Architecture(18, 0.125, 8, CLASSES, dropout=0.1)).eval()
    return Member(network, Preprocessing((mean,) * 3, (0.25,) * 3))


def noise(height: int, width: int, images: int = 1) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (images, height, width, 3)).astype(np.uint8)


def probabilities(model: Predictor, images: NDArray[np.uint8]) -> torch.Tensor:
    return torch.cat([band for _, band in model.bands(images)], dim=2)


@torch.inference_mode()
def by_hand(one: Member, images: NDArray[np.uint8]) -> torch.Tensor:
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    logits: torch.Tensor = one.network((pixels - one.preprocessing.mean[0]) / one.preprocessing.std[0])
    return logits.softmax(dim=1)


def test_windows_cover_every_pixel_and_do_not_leave_the_image() -> None:
    for length in range(1, 60):
        covered = np.zeros(length, int)
        for window in windows(length, 16, 4):
            assert 0 <= window.start < window.stop <= length
            assert window.stop - window.start == min(16, length)
            covered[window] += 1
        assert covered.min() >= 1


def test_windows_advance_by_their_side_minus_the_overlap() -> None:
    assert [w.start for w in windows(40, 16, 4)] == [0, 12, 24]
    assert [w.start for w in windows(41, 16, 4)] == [0, 12, 24, 25]


@pytest.mark.parametrize("overlap", [0, 1, 4, 9, 15])
def test_window_shares_add_up_to_one_everywhere(overlap: int) -> None:
    for length in range(1, 90):
        total = torch.zeros(length)
        parts = windows(length, 16, overlap)
        for part, share in zip(parts, shares(length, parts, overlap), strict=True):
            assert (share > 0).all()
            total[part] += share
        assert torch.allclose(total, torch.ones(length), atol=1e-6)


def test_a_share_rises_by_equal_steps_over_the_overlap() -> None:
    parts = windows(28, 16, 4)
    left, right = shares(28, parts, 4)
    assert torch.allclose(left, torch.tensor([*[1.0] * 12, 0.8, 0.6, 0.4, 0.2]))
    assert torch.allclose(right, torch.tensor([0.2, 0.4, 0.6, 0.8, *[1.0] * 12]))


def test_a_small_image_is_predicted_in_one_pass() -> None:
    one = member()
    images = noise(50, 70, images=2)
    predicted = probabilities(predictor(one, window_px=70), images)
    assert torch.allclose(predicted, by_hand(one, images), atol=1e-6)


def test_probabilities_sum_to_one_with_windows_scales_and_flip() -> None:
    model = predictor(member(), window_px=32, window_overlap_px=12, scales=[0.5, 1.0, 1.75], flip=True)
    found = probabilities(model, noise(50, 70))
    assert found.shape == (1, CLASSES, 50, 70)
    assert torch.allclose(found.sum(dim=1), torch.ones(1, 50, 70), atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3), (47, 101)])
@pytest.mark.parametrize("scales", [[1.0], [0.25, 1.0, 4.0]])
def test_a_constant_network_gives_a_constant_prediction(size: tuple[int, int], scales: Sequence[float]) -> None:
    """Windows, scales and edges leave no visible trace in the prediction."""
    one = member()
    bias = torch.tensor([0.5, -1.0, 2.0, 0.0])
    one.network.head[-1].load_state_dict({"weight": torch.zeros(CLASSES, 16, 1, 1), "bias": bias})
    found = probabilities(predictor(one, window_px=32, window_overlap_px=8, scales=scales, flip=True), noise(*size))
    assert torch.allclose(found, bias.softmax(dim=0).view(1, CLASSES, 1, 1).expand(1, CLASSES, *size), atol=1e-6)


def test_neighbors_are_blended_by_their_shares() -> None:
    one = member()
    images = noise(32, 90)
    tiled = probabilities(predictor(one, window_px=64, window_overlap_px=38), images)
    left, right = by_hand(one, images[:, :, :64]), by_hand(one, images[:, :, 26:])
    assert torch.allclose(tiled[..., :26], left[..., :26], atol=1e-6)
    assert torch.allclose(tiled[..., 64:], right[..., 38:], atol=1e-6)
    # Each window's share rises over the 32 px from its border to its middle. The 6 px between the centers of the
    # windows are at least 32 px from either border.
    from_left, from_right = (np.minimum(np.minimum(p, 63 - p), 38) + 1.0 for p in (np.arange(26, 64), np.arange(38)))
    share = torch.tensor(from_right / (from_left + from_right), dtype=torch.float32)
    assert torch.allclose(tiled[..., 26:64], left[..., 26:] * (1 - share) + right[..., :38] * share, atol=1e-6)


def test_no_seam_shows_where_a_window_begins_or_ends() -> None:
    """At the edge of a window, the neighbor's share starts near zero. With plain averaging, half of the neighbor would
    appear at once.
    """
    one = member()
    images = noise(64, 112)
    tiled = probabilities(predictor(one, window_px=64, window_overlap_px=16), images)
    left, right = by_hand(one, images[:, :, :64]), by_hand(one, images[:, :, 48:])
    differ = (left[..., 48:] - right[..., :16]).abs().amax(dim=(0, 1, 2))
    begins = (tiled[..., 48] - left[..., 48]).abs().amax()
    ends = (tiled[..., 63] - right[..., 15]).abs().amax()
    assert differ[0] > 0.01 and differ[15] > 0.01
    assert begins <= differ[0] / 16 and ends <= differ[15] / 16


def test_rows_are_yielded_once_no_later_window_covers_them() -> None:
    one = member()
    passes: list[int] = []
    one.network.register_forward_hook(lambda module, inputs, output: passes.append(1))
    seen = [((rows.start, rows.stop), len(passes)) for rows, _ in predictor(one, window_px=32).bands(noise(100, 20))]
    assert seen == [
        ((0, 24), 1), ((24, 32), 2), ((32, 48), 2), ((48, 56), 3), ((56, 68), 3), ((68, 80), 4), ((80, 100), 4)
    ]  # fmt: skip


@pytest.mark.e2e
def test_memory_grows_with_an_images_width_but_hardly_with_its_height() -> None:
    """For 20 classes, all probabilities of the second image would take 210 MB if kept at once."""
    code = """
import resource, torch, numpy as np
from pspnet.model.network import Architecture, PSPNet
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.prediction.image.predictor import Member
from tests.predicting import predictor

torch.set_num_threads(1)
one = Member(PSPNet(Architecture(18, 0.125, 32, 20, dropout=0.1)), Preprocessing((0.5,) * 3, (0.25,) * 3))
for height in (1024, 10240):
    predictor(one, window_px=256, window_overlap_px=32).predict(np.zeros((1, height, 256, 3), np.uint8))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    small, large = (int(line) / 1024 for line in done.stdout.split())
    assert large - small < 70, "MB, of which the image, its mask and its confidence are 20"


def test_scales_and_mirror_image_are_averaged() -> None:
    one = member()
    images = noise(40, 60)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    total = torch.zeros(1, CLASSES, 40, 60)
    with torch.inference_mode():
        for scale in (0.5, 1.5):
            size = (round(40 * scale), round(60 * scale))
            inputs = F.interpolate(one.preprocessing(pixels), size, mode="bilinear", align_corners=False)
            for turned in (inputs, inputs.flip(-1)):
                found = F.interpolate(one.network(turned).softmax(1), (40, 60), mode="bilinear", align_corners=False)
                total += found if turned is inputs else found.flip(-1)
    assert torch.allclose(probabilities(predictor(one, scales=[0.5, 1.5], flip=True), images), total / 4, atol=1e-6)


def test_at_every_scale_the_network_sees_no_more_than_a_window() -> None:
    one = member()
    seen: list[tuple[int, ...]] = []
    one.network.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape[-2:])))
    probabilities(predictor(one, window_px=48, window_overlap_px=16, scales=[0.5, 1.0, 1.75]), noise(150, 90))
    assert max(max(size) for size in seen) <= 48
    assert {(48, 45), (48, 48)} <= set(seen)


def test_a_mirror_image_has_the_mirrored_prediction_with_flip() -> None:
    images = noise(40, 48)
    model = predictor(member(), flip=True)
    mirrored = probabilities(model, images[:, :, ::-1])
    assert torch.allclose(mirrored.flip(-1), probabilities(model, images), atol=1e-5)


def test_several_members_are_averaged_each_with_its_own_preprocessing() -> None:
    one, other = member(seed=0), member(seed=1, mean=0.3)
    images = noise(40, 60)
    expected = (by_hand(one, images) + by_hand(other, images)) / 2
    assert torch.allclose(probabilities(predictor(one, other), images), expected, atol=1e-6)


def test_the_mask_holds_the_likeliest_class_and_the_confidence_is_its_probability() -> None:
    images = noise(60, 90, images=2)
    model = predictor(member(), window_px=32)
    found = probabilities(model, images)
    for number, prediction in enumerate(model.predict(images)):
        assert (prediction.mask == found[number].argmax(dim=0).numpy()).all()
        assert np.array_equal(prediction.confidence, found[number].amax(dim=0).numpy())


def test_a_read_only_array_is_predicted_and_left_unchanged() -> None:
    images = noise(20, 30)
    images.flags.writeable = False
    before = images.copy()
    predictor(member()).predict(images)
    assert (images == before).all()


def test_the_protocol_holds_every_parameter_of_predict() -> None:
    assert list(inspect.signature(PredictionProtocol).parameters) == list(PredictParams.model_fields)


def test_the_protocol_describes_windows_scales_and_flip() -> None:
    assert str(PredictionProtocol(1024, 256, [1.0], flip=False)) == (
        "single scale 1, no flip; images longer than 1,024 px in windows of 1,024 px that overlap by 256 px"
    )
    assert str(PredictionProtocol(473, 158, [0.5, 1.0, 1.75], flip=True)) == (
        "mean over the scales 0.5, 1, 1.75, mean with the mirror image; "
        "images longer than 473 px in windows of 473 px that overlap by 158 px, each as it is scaled"
    )
