"""The steps shared by both training loops: batches, gradients in parts, updates, checkpoints."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from pspnet.config.optimizer import OptimizerParams
from pspnet.config.runtime import RuntimeParams
from pspnet.dataset.samples import Samples
from pspnet.errors import Problem, UserError
from pspnet.training.shared.checkpoint import Checkpoint, TrainingState, open_checkpoint
from pspnet.training.shared.distributed import Peers, Tick, check_pairs, check_shares, joined
from pspnet.training.shared.loading import Batch, Batches, Stream, load_batches, parts_of, stream_keys
from pspnet.training.shared.nonfinite import not_finite
from pspnet.training.shared.optimizer import (
    Groups,
    build_optimizer,
    clip_gradient,
    gradient_norm,
    learning_rate_at,
    set_learning_rate,
)
from pspnet.training.shared.runtime import device_lock, seed_step

Figures = dict[str, float]
Work = Callable[[Batch], tuple[Tensor, Mapping[str, Tensor]]]


class StepParams(Protocol):
    """The keys of `pretrain` and `finetune` that control steps."""

    @property
    def epochs(self) -> float: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def optimizer(self) -> OptimizerParams: ...


@dataclass(frozen=True)
class Session:
    """The settings and resources of a training run, for any task."""

    runtime: RuntimeParams
    peers: Peers
    checkpoint: Checkpoint
    tick: Tick


@contextmanager
def open_session(
    stage: str, digest: str, checkpoints: Path, runtime: RuntimeParams, device: torch.device, tick: Tick
) -> Iterator[Session]:
    """Lock the device and the checkpoint, and join all processes of the run."""
    with (
        device_lock(device),
        open_checkpoint(checkpoints, stage, digest) as checkpoint,
        joined(device) as peers,
    ):
        yield Session(runtime, peers, checkpoint, tick)


class Steps:
    """The steps that remain after the checkpoint."""

    def __init__(
        self,
        stage: str,
        session: Session,
        module: nn.Module,
        groups: Groups,
        images: Samples,
        params: StepParams,
        average: nn.Module | None = None,
    ) -> None:
        peers = session.peers
        check_shares(stage, params.batch_size, params.optimizer.accumulation_steps, peers)
        self.per_epoch = len(images) // params.batch_size
        if self.per_epoch == 0:
            expected = f"at most {len(images)}, the number of training images"
            raise UserError(Problem(f"{stage}.batch_size", f"is {params.batch_size}", expected))
        self._stage, self._session, self._batch_size = stage, session, params.batch_size
        self._sources, self._streams = [images], [Stream(images, len(images), params.batch_size)]
        self._module, self._params, self.count = module, params.optimizer, max(1, round(params.epochs * self.per_epoch))
        self._tick = peers.together(session.tick)
        self.state = TrainingState(module, build_optimizer(params.optimizer, groups), average=average)
        session.checkpoint.restore(self.state)
        peers.check_step(self.state.step, session.checkpoint.folder)
        self.shared = peers.shared(module)

    def add(self, images: Samples, per_step: int, first_step: int) -> None:
        """From `first_step` on, each batch also has some of these images, in pairs. They are no part of an epoch."""
        key = f"{self._stage}.unlabeled.images_per_step"
        check_pairs(key, per_step, self._params.accumulation_steps, self._session.peers)
        self._sources.append(images)
        self._streams.append(Stream(images, len(images), per_step, first_step))

    @contextmanager
    def batches(self) -> Iterator[Batches]:
        """Yield the remaining batches. If the block is interrupted, the checkpoint is saved."""
        peers, seed = self._session.peers, self._session.runtime.seed
        batches = load_batches(self._streams, seed, self.state.step, self.count, peers)
        with closing(batches), self._session.checkpoint.kept_when_interrupted(self.state):
            yield batches

    def learning_rate_at(self, step: int) -> float:
        return learning_rate_at(step, self.count, self._params)

    def begin(self, batches: Batches) -> Batch:
        batch = {
            name: tensor.to(self._session.peers.device, non_blocking=True) for name, tensor in next(batches).items()
        }
        set_learning_rate(self.state.optimizer, self.learning_rate_at(self.state.step))
        self.state.optimizer.zero_grad()
        return batch

    def backward(self, batch: Batch, work: Work) -> Figures:
        """Compute the step's gradient. `work` returns a part's share of the loss and of the figures. Both are summed
        over all parts and devices.
        """
        peers, parts = self._session.peers, self._params.accumulation_steps
        sums: dict[str, Tensor] = {}
        for number, part in enumerate(parts_of(batch, parts)):
            seed_step(self._session.runtime.seed, self.state.step, peers.rank, number)
            with peers.alone(self.shared) if number + 1 < parts else nullcontext():
                loss, shares = work(part)
                torch.autograd.backward(loss)
            for name, share in shares.items():
                sums[name] = sums.get(name, 0) + share.detach().float()
        self._norm = gradient_norm(self._module)
        values = torch.cat([peers.sum(torch.stack(list(sums.values()))), self._norm[None]]).tolist()
        return dict(zip([*sums, "gradient_norm"], values, strict=True))

    def not_finite(self, batch: Batch, figures: Figures, *, masks_fit: bool = True) -> UserError:
        keys = stream_keys(self._streams, self.state.step, self._session.runtime.seed)
        sources = [
            images.source(position) for images, own in zip(self._sources, keys, strict=True) for _, position in own
        ]
        folder, rank = self._session.checkpoint.folder, self._session.peers.rank
        return not_finite(self._stage, figures, self.state.step + 1, batch, sources, folder, rank, masks_fit=masks_fit)

    def update(self) -> None:
        clip_gradient(self._module, self._norm, self._params.gradient_clip_norm)
        self.state.optimizer.step()

    def end(self, figures: Figures, note: str) -> None:
        self.state.step += 1
        for name, value in figures.items():
            self.state.sums[name] = self.state.sums.get(name, 0.0) + value
        self._session.checkpoint.save_if_due(self.state)
        self.tick(note)

    def tick(self, note: str) -> None:
        """Report progress as a number of images. All processes must call it the same number of times."""
        self._tick(self.state.step * self._batch_size, self.count * self._batch_size, note)

    def means(self) -> Figures:
        """Return the means of the figures over the steps since the last record, and reset the sums."""
        first = self.state.records[-1]["step"] if self.state.records else 0
        means = {name: total / (self.state.step - first) for name, total in self.state.sums.items()}
        self.state.sums = {}
        return means
