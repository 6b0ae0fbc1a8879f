import numpy as np
import torch

from pspnet.model.network import Architecture, PSPNet
from pspnet.model.preprocessing import Preprocessing
from pspnet.prediction import Predictor, windows

CPU = torch.device("cpu")


def predictor(window_px: int, overlap_px: int) -> Predictor:
    torch.manual_seed(0)
    network = PSPNet(Architecture(18, 0.125, 8, 4, dropout=0.1))
    preprocessing = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return Predictor(network, preprocessing, window_px, overlap_px, CPU, "fp32")


def test_windows_cover_every_pixel_and_stay_inside() -> None:
    for length in range(1, 60):
        covered = np.zeros(length, int)
        for window in windows(length, 16, 4):
            assert 0 <= window.start < window.stop <= length
            assert window.stop - window.start == min(16, length)
            covered[window] += 1
        assert covered.min() >= 1


def test_windows_advance_by_their_side_less_the_overlap() -> None:
    assert [w.start for w in windows(40, 16, 4)] == [0, 12, 24]
    assert [w.start for w in windows(41, 16, 4)] == [0, 12, 24, 25]


def test_probabilities_sum_to_one_in_windows_too() -> None:
    images = torch.randint(0, 256, (1, 3, 50, 70), dtype=torch.uint8)
    for window in (64, 100):
        probabilities = predictor(window, 16).probabilities(images)
        assert probabilities.shape == (1, 4, 50, 70)
        assert torch.allclose(probabilities.sum(dim=1), torch.ones(1, 50, 70), atol=1e-5)


def test_a_pixel_far_from_the_seams_is_predicted_by_its_window_alone() -> None:
    images = torch.randint(0, 256, (1, 3, 32, 90), dtype=torch.uint8)
    tiled = predictor(64, 16).probabilities(images)
    left = predictor(64, 16).probabilities(images[..., :64])
    right = predictor(64, 16).probabilities(images[..., 26:])
    assert torch.allclose(tiled[..., :26], left[..., :26], atol=1e-6)
    assert torch.allclose(tiled[..., 64:], right[..., 38:], atol=1e-6)
    assert torch.allclose(tiled[..., 26:64], (left[..., 26:] + right[..., :38]) / 2, atol=1e-6)


def test_mask_is_the_likeliest_class_and_confidence_its_probability() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    model = predictor(64, 16)
    [prediction] = model.predict(image[None])
    probabilities = model.probabilities(torch.from_numpy(image).permute(2, 0, 1)[None])[0]
    assert (prediction.mask == probabilities.argmax(dim=0).numpy()).all()
    assert np.allclose(prediction.confidence, probabilities.amax(dim=0).numpy(), atol=1e-6)
