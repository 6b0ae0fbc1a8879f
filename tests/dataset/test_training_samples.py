import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from pspnet.dataset.augmentation import Augmentation
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.dataset.training_samples import TrainingCrops
from pspnet.demo.streets import synthesize
from pspnet.stages import prepare
from pspnet.tracking.run import StageRun
from tests.parameters import demo_params
from tests.training.conftest import quiet

Sample = dict[str, Tensor]


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


def augmentation(random: bool = True) -> Augmentation:
    if random:
        return Augmentation(48, 64, 0.5, 2.0, 10.0, 0.5, 0.5, 0.2, (1, 2, 3), 255)
    return Augmentation(96, 128, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, (1, 2, 3), 255)


def crops(dataset: PreparedDataset, seed: int = 0, random: bool = True) -> TrainingCrops:
    return TrainingCrops(dataset.reader(), dataset.annotated("train"), augmentation(random), seed)


def same(one: Sample, other: Sample) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_sample_is_an_image_and_its_mask_as_tensors(dataset: PreparedDataset) -> None:
    samples = crops(dataset)
    assert len(samples) == dataset.masks["train"]
    sample = samples[0, 0]
    assert {name: tuple(tensor.shape) for name, tensor in sample.items()} == {"image": (48, 64, 3), "mask": (48, 64)}
    assert all(tensor.dtype == torch.uint8 and tensor.is_contiguous() for tensor in sample.values())


def test_positions_are_the_rows_of_the_index(dataset: PreparedDataset) -> None:
    samples, index, reader = crops(dataset, random=False), dataset.annotated("train"), dataset.reader()
    for position, (shard, row) in enumerate(index[["shard", "row"]].itertuples(index=False)):
        sample = samples[3, position]
        assert np.array_equal(sample["image"], reader.image(shard, row))
        assert np.array_equal(sample["mask"], reader.mask(shard, row))


def test_a_sample_depends_only_on_seed_epoch_and_position(dataset: PreparedDataset) -> None:
    one, two = crops(dataset), crops(dataset)
    copy: TrainingCrops = pickle.loads(pickle.dumps(one))
    keys = [(epoch, position) for epoch in range(3) for position in range(len(one))]
    first = {key: one[key] for key in keys}
    assert all(same(two[key], first[key]) for key in reversed(keys))
    assert all(same(copy[key], first[key]) for key in keys[::2])
    assert all(same(one[key], first[key]) for key in keys)


def test_every_epoch_position_and_seed_has_its_own_crop(dataset: PreparedDataset) -> None:
    samples = crops(dataset)
    images = [samples[epoch, position]["image"] for epoch in range(5) for position in range(len(samples))]
    images += [crops(dataset, seed=1)[0, position]["image"] for position in range(len(samples))]
    assert len({image.numpy().tobytes() for image in images}) == len(images)


def test_neighboring_images_get_different_random_numbers(dataset: PreparedDataset) -> None:
    """The same picture at two positions gets two different crops."""
    index = dataset.annotated("train")
    twice = TrainingCrops(dataset.reader(), pd.concat([index[:1]] * 2), augmentation(), seed=0)
    assert not same(twice[0, 0], twice[0, 1])


def test_a_used_dataset_is_small_when_pickled(dataset: PreparedDataset) -> None:
    index = pd.concat([dataset.annotated("train")] * 1000)
    many = TrainingCrops(dataset.reader(), index, augmentation(), seed=0)
    for position in range(dataset.masks["train"]):
        many[0, position]
    # Albumentations alone takes 5 kB; each shard and row takes 8 bytes.
    assert len(pickle.dumps(many)) < 10_000 + 8 * len(index)
