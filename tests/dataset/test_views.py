import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from pspnet.dataset.augmentation import Augmentation
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.dataset.views import UnlabeledViews
from pspnet.demo.streets import synthesize
from pspnet.selfsup import METHODS
from pspnet.stages import prepare
from pspnet.tracking.run import StageRun
from tests.parameters import demo_params, method_params
from tests.training.conftest import quiet

Sample = dict[str, Tensor]
SIDE_PX = 72


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    folder = tmp_path_factory.mktemp("data")
    synthesize(folder / "raw", images=16, labeled=16, seed=0, tick=quiet)
    params = demo_params(dataset__group_pattern="(.*)")
    prepare.run(
        params.dataset, params.prepare, raw=folder / "raw", out=folder / "prepared", checkpoints=folder / "checkpoints",
        run=StageRun(), tick=quiet,
    )  # fmt: skip
    return PreparedDataset.open(folder / "prepared")


def augmentation() -> Augmentation:
    return Augmentation(SIDE_PX, SIDE_PX, 0.5, 2.0, 10.0, 0.5, 0.5, 0.2, (1, 2, 3), 255)


def views(dataset: PreparedDataset, method: str, seed: int = 0) -> UnlabeledViews:
    index, params = dataset.index(), method_params(method)
    return UnlabeledViews(dataset.reader(), index, augmentation(), METHODS[method].views, params, seed)


def same(one: Sample, other: Sample) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", METHODS)
def test_a_view_is_an_image_with_the_answers_to_its_question(dataset: PreparedDataset, method: str) -> None:
    samples = views(dataset, method)
    assert len(samples) == sum(dataset.images.values())
    sample = samples[0, 0]
    assert sample["image"].dtype == torch.uint8
    assert tuple(sample["image"].shape) == (SIDE_PX, SIDE_PX, 3)
    assert len(sample) > 1
    assert all(tensor.is_contiguous() for tensor in sample.values())


@pytest.mark.parametrize("method", METHODS)
def test_a_view_depends_only_on_seed_epoch_and_position(dataset: PreparedDataset, method: str) -> None:
    one, two = views(dataset, method), views(dataset, method)
    copy: UnlabeledViews = pickle.loads(pickle.dumps(one))
    keys = [(epoch, position) for epoch in range(3) for position in range(len(one))]
    first = {key: one[key] for key in keys}
    assert all(same(two[key], first[key]) for key in reversed(keys))
    assert all(same(copy[key], first[key]) for key in keys[::2])
    assert all(same(one[key], first[key]) for key in keys)


@pytest.mark.parametrize("method", METHODS)
def test_every_epoch_position_and_seed_has_its_own_view(dataset: PreparedDataset, method: str) -> None:
    samples = views(dataset, method)
    images = [samples[epoch, position]["image"] for epoch in range(4) for position in range(len(samples))]
    images += [views(dataset, method, seed=1)[0, position]["image"] for position in range(len(samples))]
    assert len({image.numpy().tobytes() for image in images}) == len(images)


def test_the_crop_and_the_question_are_drawn_independently(dataset: PreparedDataset) -> None:
    """Over many epochs, a picture gets every question, because the crop does not determine the question."""
    samples = views(dataset, "rotation")
    turns = [int(samples[epoch, 0]["turns"].item()) for epoch in range(40)]
    assert np.bincount(turns, minlength=4).min() >= 3


@pytest.mark.parametrize("method", METHODS)
def test_a_used_dataset_is_small_when_pickled(dataset: PreparedDataset, method: str) -> None:
    index = pd.concat([dataset.index()] * 1000)
    many = UnlabeledViews(dataset.reader(), index, augmentation(), METHODS[method].views, method_params(method), seed=0)
    for position in range(sum(dataset.images.values())):
        many[0, position]
    # Albumentations alone takes 5 kB; each shard and row takes 8 bytes.
    assert len(pickle.dumps(many)) < 10_000 + 8 * len(index)
