import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pspnet.config.finetune import PseudoLabelParams
from pspnet.dataset.augmentation import Augmentation
from pspnet.dataset.store.shards import Record, ShardReader, ShardWriter, digests
from pspnet.dataset.unlabeled_crops import UnlabeledCrops, drawn_box
from tests.parameters import unlabeled_params

PLAIN: dict[str, Any] = {"color_jitter": 0.0, "grayscale_probability": 0.0, "blur_probability": 0.0}
STRONG = ("strong_0", "strong_1")


def settings(**changes: Any) -> PseudoLabelParams:
    params = unlabeled_params("unimatch", **changes)
    assert isinstance(params, PseudoLabelParams)
    return params


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images without masks: noise, noise, red beside blue, and one smaller than the crop."""
    folder = tmp_path_factory.mktemp("shards")
    noise = np.random.default_rng(0).integers(0, 256, (2, 96, 128, 3), np.uint8)
    halves = np.full((96, 128, 3), (0, 0, 200), np.uint8)
    halves[:, :64] = (200, 0, 0)
    writer = ShardWriter(folder / "shards", 10**9)
    for number, image in enumerate([*noise, halves, np.full((20, 30, 3), 255, np.uint8)]):
        _, encoded = cv2.imencode(".png", image[:, :, ::-1])
        content, name = encoded.tobytes(), f"{number}.png"
        height, width = image.shape[:2]
        writer.add(
            Record(str(number), "unlabeled", content, None, height, width, "", name, digests(content, None)[1].hex())
        )
    writer.close()
    return folder / "shards"


def crops(shards: Path, *, augmentation: Augmentation | None = None, seed: int = 0, **changes: Any) -> UnlabeledCrops:
    if augmentation is None:
        augmentation = Augmentation(48, 64, 0.5, 2.0, 10.0, 0.5, 1.0, 1.0, (1, 2, 3), 255)
    index = pd.DataFrame({"shard": [0] * 4, "row": range(4)})
    return UnlabeledCrops(ShardReader(shards, ["00000.arrow"]), index, augmentation, settings(**changes), 2, seed)


def pixels(sample: dict[str, Tensor], name: str) -> NDArray[np.uint8]:
    array: NDArray[np.uint8] = sample[name].numpy()
    return array


def test_a_sample_has_one_weak_and_several_strong_views_of_the_same_size(shards: Path) -> None:
    sample = crops(shards)[0, 0]
    views, planes = {"weak", *STRONG}, {"inside", "box_0", "box_1"}
    assert sample.keys() == views | planes
    assert all(sample[name].shape == (48, 64, 3) and sample[name].dtype == torch.uint8 for name in views)
    assert all(sample[name].shape == (48, 64) and sample[name].dtype == torch.bool for name in planes)


def test_strong_views_show_the_same_crop_as_the_weak_view(shards: Path) -> None:
    """Each image is cropped, scaled, rotated and mirrored; without changes of color all views are equal."""
    samples = crops(shards, **PLAIN)
    for epoch in range(5):
        sample = samples[epoch, 0]
        assert all(torch.equal(sample[name], sample["weak"]) for name in STRONG)
    assert not torch.equal(samples[0, 0]["weak"], samples[1, 0]["weak"])


def test_changes_of_color_move_no_pixel(shards: Path) -> None:
    """All pixels of one color in the weak view have one color in a strong view."""
    flipped = Augmentation(48, 64, 1.0, 1.0, 0.0, 0.5, 0.0, 0.0, (1, 2, 3), 255)
    changed = 0
    for epoch in range(20):
        sample = crops(shards, augmentation=flipped, grayscale_probability=0.0, blur_probability=0.0)[epoch, 2]
        weak = pixels(sample, "weak")
        for name in STRONG:
            strong = pixels(sample, name)
            red = (weak == (200, 0, 0)).all(axis=-1)
            assert all(len(np.unique(strong[part], axis=0)) <= 1 for part in (red, ~red))
            changed += not np.array_equal(weak, strong)
    assert changed > 20


def test_views_are_gray_or_blurred_as_often_as_the_settings_say(shards: Path) -> None:
    gray = crops(shards, **PLAIN | {"grayscale_probability": 1.0})[0, 0]
    expected = cv2.cvtColor(pixels(gray, "weak"), cv2.COLOR_RGB2GRAY)
    assert all((pixels(gray, name) == expected[..., None]).all() for name in STRONG)
    blurred = [crops(shards, **PLAIN | {"blur_probability": 1.0})[epoch, 0] for epoch in range(10)]
    sharpness = [[pixels(one, name).std() for one in blurred] for name in ("weak", *STRONG)]
    assert max(sharpness[1]) <= max(sharpness[0]) and np.mean(sharpness[1]) < 0.8 * np.mean(sharpness[0])


def test_the_two_strong_views_differ(shards: Path) -> None:
    samples = crops(shards, cutmix_probability=1.0)
    differ = [[not torch.equal(samples[epoch, 0][f"{kind}_0"], samples[epoch, 0][f"{kind}_1"]) for epoch in range(9)]
              for kind in ("strong", "box")]  # fmt: skip
    assert [sum(one) >= 8 for one in differ] == [True, True]


def test_the_weak_view_has_the_colors_of_the_image(shards: Path) -> None:
    """`blur_probability` and `color_jitter` of the crops with masks do not touch it."""
    same_size = Augmentation(96, 128, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, (1, 2, 3), 255)
    samples = crops(shards, augmentation=same_size)
    assert np.array_equal(pixels(samples[0, 1], "weak"), ShardReader(shards, ["00000.arrow"]).image(0, 1))


@pytest.mark.parametrize("ignore", [255, 0])
def test_pixels_outside_the_image_are_marked(shards: Path, ignore: int) -> None:
    larger = Augmentation(48, 64, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, (1, 2, 3), ignore)
    sample = crops(shards, augmentation=larger)[0, 3]
    inside = sample["inside"].numpy()
    assert inside.sum() == 20 * 30
    assert (pixels(sample, "weak")[inside] == 255).all()
    assert (pixels(sample, "weak")[~inside] == (1, 2, 3)).all()


def test_a_sample_depends_only_on_seed_epoch_and_position(shards: Path) -> None:
    one = crops(shards)
    copy: UnlabeledCrops = pickle.loads(pickle.dumps(one))
    first = {key: one[key] for key in [(0, 0), (0, 1), (1, 0)]}
    for key in reversed(first):
        for samples in (one, copy, crops(shards)):
            assert all(torch.equal(samples[key][name], first[key][name]) for name in first[key])
    others = [*first.values(), crops(shards, seed=1)[0, 0]]
    assert len({pixels(sample, "strong_0").tobytes() for sample in others}) == 4


class Counting(ShardReader):
    read: int = 0

    def image(self, shard: int, row: int) -> NDArray[np.uint8]:
        self.read += 1
        return super().image(shard, row)


def test_one_sample_decodes_one_image_once(shards: Path) -> None:
    reader = Counting(shards, ["00000.arrow"])
    index = pd.DataFrame({"shard": [0], "row": [0]})
    plain = Augmentation(48, 64, 0.5, 2.0, 10.0, 0.5, 0.0, 0.0, (1, 2, 3), 255)
    UnlabeledCrops(reader, index, plain, settings(), 2, seed=0)[0, 0]
    assert reader.read == 1


@pytest.mark.parametrize("shape", [(48, 64), (200, 30), (33, 33)])
def test_boxes_have_the_published_areas_and_lie_anywhere(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    boxes = [drawn_box(shape, rng) for _ in range(2000)]
    shares = np.array([box.mean() for box in boxes])
    assert 0.01 < shares.min() < 0.05 and 0.35 < shares.max() < 0.43
    for box in boxes:
        rows, columns = np.flatnonzero(box.any(axis=1)), np.flatnonzero(box.any(axis=0))
        assert box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert np.mean(boxes, axis=0).min() > 0  # every pixel is in some box


def test_boxes_are_drawn_with_their_probability(shards: Path) -> None:
    def drawn(probability: float) -> int:
        samples = crops(shards, cutmix_probability=probability)
        return sum(bool(samples[epoch, 0][box].any()) for epoch in range(20) for box in ("box_0", "box_1"))

    assert (drawn(0.0), drawn(1.0)) == (0, 40)
    assert 10 < drawn(0.5) < 30
