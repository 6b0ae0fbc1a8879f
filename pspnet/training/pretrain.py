"""Self-supervised training: any method of `selfsup`, one loop."""

import math
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from functools import partial

import torch
from torch import Tensor

from pspnet.config.pretrain import PretrainParams
from pspnet.config.runtime import RuntimeParams
from pspnet.dataset.views import UnlabelledViews
from pspnet.errors import Problem, UserError
from pspnet.selfsup.pretext import Pretext
from pspnet.training.checkpoint import Checkpoint, Record, TrainingState
from pspnet.training.distributed import Peers, check_shares
from pspnet.training.loading import keys_of, load_batches, parts_of
from pspnet.training.nonfinite import not_finite
from pspnet.training.optimizer import (
    build_optimizer,
    clip_gradient,
    gradient_norm,
    learning_rate_at,
    set_learning_rate,
)
from pspnet.training.runtime import autocast, compiled, seed_step


def pretrain(
    pretext: Pretext,
    views: UnlabelledViews,
    params: PretrainParams,
    runtime: RuntimeParams,
    peers: Peers,
    checkpoint: Checkpoint,
    tick: Callable[[int, int, str], None],
) -> Iterator[Record]:
    """Train `pretext` in place, and with it its backbone; yields a record per epoch, earlier ones too."""
    check_shares("pretrain", params.batch_size, params.accumulation_steps, peers)
    steps_per_epoch = len(views) // params.batch_size
    if steps_per_epoch == 0:
        raise UserError(
            Problem("pretrain.batch_size", f"is {params.batch_size}", f"at most the {len(views)} images there are")
        )
    steps = params.epochs * steps_per_epoch
    device, tick = peers.device, peers.together(tick)
    pretext.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    peers.share_statistics(pretext)
    optimizer = build_optimizer(
        params.optimizer,
        [(pretext.parameters(), 1.0)],
        params.learning_rate,
        params.momentum,
        params.weight_decay,
        params.decay_norms_and_biases,
    )
    learning_rate = partial(
        learning_rate_at,
        steps=steps,
        learning_rate=params.learning_rate,
        schedule=params.schedule,
        warmup_steps=params.warmup_steps,
        poly_power=params.poly_power,
        floor=params.learning_rate_floor,
    )
    state = TrainingState(pretext, optimizer)
    checkpoint.restore(state)
    peers.check_step(state.step, checkpoint.folder)
    shared = peers.shared(pretext)
    loss_of = compiled(shared, runtime)
    yield from state.records
    batches = load_batches(views, len(views), params.batch_size, runtime.seed, state.step, steps, peers)
    with closing(batches), checkpoint.kept_when_interrupted(state):
        while len(state.records) < params.epochs:
            epoch = len(state.records) + 1
            pretext.train()
            while state.step < epoch * steps_per_epoch:
                batch = {name: tensor.to(device, non_blocking=True) for name, tensor in next(batches).items()}
                set_learning_rate(optimizer, learning_rate(state.step))
                optimizer.zero_grad()
                sums: dict[str, Tensor] = {}  # over the parts of the step
                for number, part in enumerate(parts_of(batch, params.accumulation_steps)):
                    seed_step(runtime.seed, state.step, peers.rank, number)
                    with peers.alone(shared) if number + 1 < params.accumulation_steps else nullcontext():
                        with autocast(device, runtime):
                            loss, others = loss_of(part)
                        (loss / params.accumulation_steps).backward()
                    for name, value in {"loss": loss, **others}.items():
                        sums[name] = sums.get(name, 0) + value.detach().float()
                norm = gradient_norm(pretext)
                averages = peers.sum(torch.stack(list(sums.values()))) / (params.accumulation_steps * peers.count)
                figures = dict(zip([*sums, "gradient_norm"], torch.cat([averages, norm[None]]).tolist(), strict=True))
                if not all(map(math.isfinite, figures.values())):
                    keys = keys_of(state.step, len(views), params.batch_size, runtime.seed)
                    sources = [views.source(position) for _, position in keys]
                    raise not_finite(
                        "pretrain",
                        figures,
                        state.step + 1,
                        batch,
                        sources,
                        checkpoint.folder,
                        peers.rank,
                        masks_fit=True,
                    )
                clip_gradient(pretext, norm, params.gradient_clip_norm)
                optimizer.step()
                pretext.after_step()
                state.step += 1
                for name, value in figures.items():
                    state.sums[name] = state.sums.get(name, 0.0) + value
                checkpoint.save_if_due(state)
                tick(
                    state.step * params.batch_size,
                    steps * params.batch_size,
                    f"epoch {epoch}/{params.epochs}, loss {figures['loss']:.3f}, data wait {batches.waited_share:.0%}",
                )
            means = {name: total / steps_per_epoch for name, total in state.sums.items()}
            state.records.append({"epoch": epoch, "learning_rate": learning_rate(state.step - 1), **means})
            state.sums = {}
            yield state.records[-1]
    checkpoint.save(state)
