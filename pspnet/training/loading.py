"""Batches in an order that depends on the seed and the epoch alone, from processes that remember nothing."""

import signal
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pspnet.process import die_with_parent
from pspnet.training.runtime import loader_workers

Batch = dict[str, Tensor]
Key = tuple[int, int]  # (epoch, position): all that a sample's randomness may depend on, besides the seed


class _Steps(Sampler[list[Key]]):
    """The keys of every step from `first_step` on. The last images of an epoch that fill no batch sit out."""

    def __init__(self, images: int, batch_size: int, seed: int, first_step: int, steps: int) -> None:
        self._images, self._batch_size, self._seed = images, batch_size, seed
        self._steps = range(first_step, steps)

    def __iter__(self) -> Iterator[list[Key]]:
        per_epoch = self._images // self._batch_size
        order_of, order = -1, np.empty(0, np.int64)
        for step in self._steps:
            epoch, turn = divmod(step, per_epoch)
            if epoch != order_of:
                order_of, order = epoch, np.random.default_rng([self._seed, epoch]).permutation(self._images)
            chosen = order[turn * self._batch_size : (turn + 1) * self._batch_size]
            yield [(epoch, int(position)) for position in chosen]


def load_batches(
    dataset: Dataset[Batch],
    images: int,
    batch_size: int,
    seed: int,
    first_step: int,
    steps: int,
    device: torch.device,
) -> Iterator[Batch]:
    workers = loader_workers()
    loader: DataLoader[Batch] = DataLoader(
        dataset,
        batch_sampler=_Steps(images, batch_size, seed, first_step, steps),
        num_workers=workers,
        worker_init_fn=_start_worker if workers else None,
        pin_memory=device.type == "cuda",
    )
    return iter(loader)


def _start_worker(_: int) -> None:
    die_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the trainer decides what follows
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
