"""The processes that share the images of each step, one per device. torchrun starts them, and their weights stay
identical.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from pspnet.errors import EXIT_TEMPORARY, Interrupted, Problem, UserError
from pspnet.machine.process import rank, ranks

Tick = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Peers:
    """Several devices: each one works on its own images, and sums are taken over all of them."""

    rank: int
    count: int
    device: torch.device

    @property
    def share_batch_statistics(self) -> bool:
        """torch has synchronized BatchNorm only for GPUs. On CPUs, each process normalizes by its own images."""
        return self.count > 1 and self.device.type == "cuda"

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all devices, in place."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def sum_counts(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        total: NDArray[np.int64] = self.sum(torch.from_numpy(counts).to(self.device)).cpu().numpy()
        return total

    def check_step(self, step: int, folder: Path) -> None:
        """Check that all processes read the same checkpoint, because several hosts must share one folder."""
        held = torch.zeros(self.count, dtype=torch.int64, device=self.device)
        held[self.rank] = step
        if len(steps := set(self.sum(held).tolist())) > 1:
            found = f"is at step {' and '.join(map(str, sorted(steps)))} on different hosts"
            raise UserError(Problem(str(folder), found, "one folder for all", "Put PSPNET_STATE on a shared disk."))

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Copy the first process's tensors to all others."""
        if self.count > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)

    def share_statistics(self, module: nn.Module) -> None:
        """Make every BatchNorm in `module` normalize by the images of all devices."""
        if self.share_batch_statistics:
            nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]

    def shared(self, module: nn.Module) -> nn.Module:
        """Call the result instead of `module`: it averages the gradients over the processes."""
        if self.count == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        # Every parameter is used, but torch needs this flag to keep the order in which it first sums the
        # gradients, so that a resumed run sums them in the same order as an uninterrupted one.
        return DistributedDataParallel(module, devices, find_unused_parameters=True)

    def alone(self, module: nn.Module) -> AbstractContextManager[None]:
        """Keep the gradients of a `shared` module in this process, to be summed with those of a later part."""
        return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()

    def together(self, tick: Tick) -> Tick:
        """Return a tick that stops all processes in the same step if the first one must stop. All processes must call
        it the same number of times.
        """
        if self.count == 1:
            return tick

        def agreed(done: int, total: int, note: str) -> None:
            stop = Interrupted(0)
            if self.rank == 0:
                try:
                    tick(done, total, note)
                except Interrupted as request:
                    stop = request
            status = torch.tensor(stop.exit_status, device=self.device)
            distributed.broadcast(status, 0)
            if status.item():
                raise stop if self.rank == 0 else Interrupted(int(status.item()))

        return agreed


@contextmanager
def joined(device: torch.device) -> Iterator[Peers]:
    """Join all processes before the block begins."""
    if ranks() == 1:
        yield Peers(0, 1, device)
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, device_id=device if device.type == "cuda" else None)
    try:
        yield Peers(rank(), ranks(), device)
    except Interrupted:
        distributed.barrier()  # torchrun ends all processes once one leaves, so wait for the checkpoint
        raise
    except RuntimeError as error:
        if isinstance(error, distributed.DistError) or "gloo" in str(error):
            lost = "The process on another device has ended. The same command continues from the last checkpoint."
            raise Interrupted(EXIT_TEMPORARY, lost) from error
        raise
    distributed.destroy_process_group()


def check_shares(stage: str, batch_size: int, accumulation_steps: int, peers: Peers) -> None:
    """Check that the images of a step split into equal parts for all devices."""
    parts = peers.count * accumulation_steps
    least = parts if parts == 1 or peers.share_batch_statistics else 2 * parts
    if batch_size % parts or batch_size < least:
        fitting = sorted({max(least, batch_size // parts * parts), max(least, -(-batch_size // parts) * parts)})
        raise UserError(
            Problem(
                f"{stage}.batch_size",
                f"is {batch_size}, for {peers.count} devices and optimizer.accumulation_steps {accumulation_steps}",
                f"a multiple of {parts}, at least {least}",
                f"Use {' or '.join(map(str, fitting))}, or change PSPNET_DEVICES.",
            )
        )


def check_pairs(key: str, images: int, accumulation_steps: int, peers: Peers) -> None:
    """Check that a step's images split into equal parts, each of whole pairs."""
    pairs = 2 * peers.count * accumulation_steps
    if images % pairs:
        found = f"is {images}, for {peers.count} devices and optimizer.accumulation_steps {accumulation_steps}"
        raise UserError(Problem(key, found, f"a multiple of {pairs}"))
