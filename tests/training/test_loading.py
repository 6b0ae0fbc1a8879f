import time
from collections.abc import Iterator

import cv2
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pspnet.dataset.augmentation import Augmentation
from pspnet.training.shared.distributed import Peers
from pspnet.training.shared.loading import Batches, Stream, load_batches
from tests.waiting import Clock

Sample = dict[str, Tensor]
CPU = torch.device("cpu")


class Pictures(Dataset[Sample]):
    """Twelve images whose brightness equals their position, with the other tensors that a sample can contain."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        picture = torch.full((5, 7, 3), key[1], dtype=torch.uint8)
        picture[..., 2] = torch.arange(7)
        return {"image": picture, "mask": picture[..., 0], "number": torch.tensor(key[1])}


def batches(workers: str, monkeypatch: pytest.MonkeyPatch) -> Batches:
    monkeypatch.setenv("PSPNET_LOADER_WORKERS", workers)
    return load_batches([Stream(Pictures(), 12, 4)], seed=0, first_step=0, steps=6, peers=Peers(0, 1, CPU))


@pytest.mark.parametrize("workers", ["0", pytest.param("1", marks=pytest.mark.e2e)])
def test_images_keep_the_memory_layout_that_decoders_write_and_convolutions_read(
    workers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = next(batches(workers, monkeypatch))
    assert tuple(batch["image"].shape) == (4, 3, 5, 7)
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    for image, mask, number in zip(batch["image"], batch["mask"], batch["number"], strict=True):
        assert (image[:2] == number).all() and (image[2] == torch.arange(7)).all()
        assert tuple(mask.shape) == (5, 7) and (mask == number).all()


@pytest.mark.parametrize("workers", ["0", pytest.param("1", marks=pytest.mark.e2e)])
def test_an_epoch_shows_every_image_once_in_its_own_order(workers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = [number for batch in batches(workers, monkeypatch) for number in batch["number"].tolist()]
    assert sorted(shown[:12]) == sorted(shown[12:]) == list(range(12))
    assert shown[:12] != shown[12:]


@pytest.mark.parametrize(("waiting", "working"), [(0.03, 0.0), (0.03, 0.03), (0.0, 0.03)])
def test_the_share_of_time_spent_waiting_for_data_is_measured(waiting: float, working: float) -> None:
    clock = Clock()

    def slow() -> Iterator[Sample]:
        for _ in range(8):
            clock.sleep(waiting)
            yield {}

    waited = Batches(slow(), clock.monotonic)
    for step, _ in enumerate(waited):
        if waiting or step:  # otherwise no time has passed yet
            # The last step is still running when the share of waiting time is read.
            expected = (step + 1) * waiting / ((step + 1) * waiting + step * working)
            assert waited.waited_share == pytest.approx(expected)
        clock.sleep(working)


def test_only_the_last_steps_are_measured() -> None:
    clock = Clock()

    def slow_to_start() -> Iterator[Sample]:
        clock.sleep(0.3)
        for _ in range(60):
            yield {}

    waited = Batches(slow_to_start(), clock.monotonic)
    shares = []
    for _ in waited:
        shares.append(waited.waited_share)
        clock.sleep(0.002)
    assert shares[0] == 1
    assert shares[40] == pytest.approx(0.3 / (0.3 + 40 * 0.002))
    assert shares[49] > 0.7
    assert shares[50:] == [0] * 10


def test_the_default_clock_measures_real_time() -> None:
    def slow() -> Iterator[Sample]:
        time.sleep(0.01)
        yield {}

    waited = Batches(slow())
    next(waited)
    assert 0 < waited.waited_share <= 1


class Threads(Dataset[Sample]):
    def __init__(self) -> None:
        self.augmentation = Augmentation(16, 16, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, (0, 0, 0), 255)

    def __getitem__(self, _: int) -> Sample:
        return {"threads": torch.tensor(cv2.getNumThreads())}


@pytest.mark.e2e
@pytest.mark.parametrize("started", ["fork", "spawn", "forkserver"])
def test_a_process_that_augments_has_one_opencv_thread_however_it_was_started(started: str) -> None:
    assert cv2.getNumThreads() == 1
    loader: DataLoader[Sample] = DataLoader(
        Threads(), batch_sampler=[[0]], num_workers=1, multiprocessing_context=started, timeout=100
    )
    assert next(iter(loader))["threads"].tolist() == [1]
