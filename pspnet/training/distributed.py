"""The processes that share the images of each step, one to a device. torchrun starts them; their weights stay equal."""

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
from pspnet.process import rank, ranks

Tick = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Peers:
    """Of several devices each works on its images alone, and every sum is taken over all of them."""

    rank: int
    count: int
    device: torch.device

    @property
    def share_batch_statistics(self) -> bool:
        """torch has a synchronised BatchNorm for GPUs only; elsewhere each process normalises by its own images."""
        return self.count > 1 and self.device.type == "cuda"

    def sum(self, values: Tensor) -> Tensor:
        """In place."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def sum_counts(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        total: NDArray[np.int64] = self.sum(torch.from_numpy(counts).to(self.device)).cpu().numpy()
        return total

    def check_step(self, step: int, folder: Path) -> None:
        """All must have read the same checkpoint: a training over several hosts needs one folder for all of them."""
        held = torch.zeros(self.count, dtype=torch.int64, device=self.device)
        held[self.rank] = step
        if len(steps := set(self.sum(held).tolist())) > 1:
            found = f"is at step {' and '.join(map(str, sorted(steps)))} on different hosts"
            raise UserError(Problem(str(folder), found, "one folder for all", "Put PSPNET_STATE on a shared disk."))

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Everybody gets the first process's."""
        if self.count > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)

    def share_statistics(self, module: nn.Module) -> None:
        """Have every BatchNorm inside normalise by the images of all devices."""
        if self.share_batch_statistics:
            nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]

    def shared(self, module: nn.Module) -> nn.Module:
        """Called instead of `module`, has the gradients averaged over the processes."""
        if self.count == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        # Every parameter is used. But only told that some might not be, torch keeps to the order in which it sums the
        # gradients at first, so that a resumed training sums them as one that went through.
        return DistributedDataParallel(module, devices, find_unused_parameters=True)

    def alone(self, module: nn.Module) -> AbstractContextManager[None]:
        """Gradients of a `shared` module stay with this process, to be summed with those of a later part."""
        return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()

    def together(self, tick: Tick) -> Tick:
        """If the first process is asked to stop, all stop in the same step. To be called by all as often."""
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
    """All processes are there when the block begins."""
    if ranks() == 1:
        yield Peers(0, 1, device)
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, device_id=device if device.type == "cuda" else None)
    try:
        yield Peers(rank(), ranks(), device)
    except Interrupted:
        distributed.barrier()  # nobody leaves, whereupon torchrun ends all, before the checkpoint is saved
        raise
    except RuntimeError as error:
        if isinstance(error, distributed.DistError) or "gloo" in str(error):
            lost = "The process on another device has ended. The same command goes on from the last checkpoint."
            raise Interrupted(EXIT_TEMPORARY, lost) from error
        raise
    distributed.destroy_process_group()


def check_shares(stage: str, batch_size: int, accumulation_steps: int, peers: Peers) -> None:
    """The images of a step must go in equal parts to all devices."""
    parts = peers.count * accumulation_steps
    least = parts if parts == 1 or peers.share_batch_statistics else 2 * parts
    if batch_size % parts or batch_size < least:
        fitting = sorted({max(least, batch_size // parts * parts), max(least, -(-batch_size // parts) * parts)})
        raise UserError(
            Problem(
                f"{stage}.batch_size",
                f"is {batch_size}, for {peers.count} devices and {stage}.accumulation_steps {accumulation_steps}",
                f"a multiple of {parts}, at least {least}",
                f"Take {' or '.join(map(str, fitting))}, or set PSPNET_DEVICES to another number.",
            )
        )
