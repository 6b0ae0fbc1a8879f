"""Batches from stateless loader processes, in an order that depends only on the seed and the epoch."""

import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from pspnet.machine.process import die_with_parent, ranks
from pspnet.training.shared.distributed import Peers
from pspnet.training.shared.runtime import loader_workers

RECENT_STEPS = 50

Batch = dict[str, Tensor]
Key = tuple[int, int]  # (epoch, position): with the seed, they determine all randomness in a sample


class Stream(NamedTuple):
    """The images that a step takes from a dataset."""

    dataset: Dataset[Batch]
    images: int  # in the dataset
    per_step: int  # on all devices
    first_step: int = 0  # earlier steps take none


def keys_of(step: int, images: int, batch_size: int, seed: int, number: int = 0) -> list[Key]:
    """Return the keys of a step's images on all devices. An incomplete last batch of an epoch is dropped.

    `number` is the number of the stream. Streams of equally many images must not show them in the same order.
    """
    epoch, turn = divmod(step, images // batch_size)
    chosen = _order(images, seed, epoch, number)[turn * batch_size : (turn + 1) * batch_size]
    return [(epoch, int(position)) for position in chosen]


@lru_cache(maxsize=2)
def _order(images: int, seed: int, epoch: int, number: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch, number]).permutation(images)


def stream_keys(streams: Sequence[Stream], step: int, seed: int) -> list[list[Key]]:
    """Return the keys of a step's images from each stream, on all devices."""
    return [
        keys_of(step - one.first_step, one.images, one.per_step, seed, number) if step >= one.first_step else []
        for number, one in enumerate(streams)
    ]


class _Steps(Sampler[list[tuple[int, Key]]]):
    """The keys of every step from `first_step` on, each with its stream; each process takes its share of each."""

    def __init__(self, streams: Sequence[Stream], seed: int, first_step: int, steps: int, peers: Peers) -> None:
        self._streams, self._seed, self._peers = streams, seed, peers
        self._steps = range(first_step, steps)

    def __iter__(self) -> Iterator[list[tuple[int, Key]]]:
        for step in self._steps:
            chosen: list[tuple[int, Key]] = []
            for number, keys in enumerate(stream_keys(self._streams, step, self._seed)):
                share = len(keys) // self._peers.count
                first = self._peers.rank * share
                chosen += [(number, key) for key in keys[first : first + share]]
            yield chosen


class _Joined(Dataset[Batch]):
    """The images of all streams."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self._datasets = [stream.dataset for stream in streams]

    def __getitem__(self, place: tuple[int, Key]) -> Batch:
        number, key = place
        return self._datasets[number][key]


class Batches(Iterator[Batch]):
    """The batches of a training run, and the share of its time spent waiting for them."""

    def __init__(self, batches: Iterator[Batch], clock: Callable[[], float] = time.perf_counter) -> None:
        self._batches, self._clock = batches, clock
        self._last = clock()
        self._steps: deque[tuple[float, float]] = deque(maxlen=RECENT_STEPS)  # (seconds of waiting, seconds in total)

    def __next__(self) -> Batch:
        asked = self._clock()
        batch = next(self._batches)
        got = self._clock()
        self._steps.append((got - asked, got - self._last))
        self._last = got
        return batch

    def close(self) -> None:
        """End the loader's processes now instead of with the last reference, which an error's traceback may hold.

        At exit, Python waits for these processes, and on several devices they ignore the signal it sends.
        """
        self._batches = iter(())

    @property
    def waited_share(self) -> float:
        """The fraction of recent step time spent waiting for data. At first, this is mostly the time that the loader
        processes take to start.
        """
        return sum(waited for waited, _ in self._steps) / sum(whole for _, whole in self._steps)


def load_batches(streams: Sequence[Stream], seed: int, first_step: int, steps: int, peers: Peers) -> Batches:
    """Build batches with images as (N, 3, H, W) in `channels_last`, the layout that decoders write and convolutions run
    fastest on. A batch holds the tensors of all streams, whose names must differ.
    """
    workers = loader_workers()
    loader: DataLoader[Batch] = DataLoader(
        _Joined(streams),
        batch_sampler=_Steps(streams, seed, first_step, steps, peers),
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=_start_worker if workers else None,
        pin_memory=peers.device.type == "cuda",
    )
    return Batches(iter(loader))


def collate(samples: list[Batch]) -> Batch:
    kinds: dict[tuple[str, ...], list[Batch]] = {}
    for sample in samples:
        kinds.setdefault(tuple(sample), []).append(sample)
    batch = {name: tensor for own in kinds.values() for name, tensor in default_collate(own).items()}
    return {name: tensor.permute(0, 3, 1, 2) if _is_image(tensor) else tensor for name, tensor in batch.items()}


def _is_image(batch: Tensor) -> bool:
    return batch.dtype == torch.uint8 and batch.ndim == 4


def parts_of(batch: Batch, parts: int) -> Iterator[Batch]:
    """Split the batch into `parts` equal parts, in order."""
    chunks = {name: tensor.chunk(parts) for name, tensor in batch.items()}
    return ({name: tensors[part] for name, tensors in chunks.items()} for part in range(parts))


def _start_worker(_: int) -> None:
    die_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group, but the trainer decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL if ranks() == 1 else signal.SIG_IGN)  # torchrun also signals the group
