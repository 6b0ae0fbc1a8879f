"""Self-supervised training: any method of `selfsup`, one loop."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch

from pspnet.config.pretrain import PretrainParams
from pspnet.config.runtime import RuntimeParams
from pspnet.dataset.views import UnlabelledViews
from pspnet.errors import Problem, UserError
from pspnet.selfsup.pretext import Pretext
from pspnet.training.checkpoint import Checkpoint, Record, TrainingState
from pspnet.training.loading import load_batches
from pspnet.training.optimizer import build_optimizer, learning_rate_at, set_learning_rate
from pspnet.training.runtime import autocast, seed_step


def pretrain(
    pretext: Pretext,
    views: UnlabelledViews,
    params: PretrainParams,
    runtime: RuntimeParams,
    device: torch.device,
    checkpoint: Checkpoint,
    tick: Callable[[int, int, str], None],
) -> Iterator[Record]:
    """Train `pretext` in place, and with it its backbone; yields a record per epoch, earlier ones too."""
    steps_per_epoch = len(views) // params.batch_size
    if steps_per_epoch == 0:
        raise UserError(
            Problem("pretrain.batch_size", f"is {params.batch_size}", f"at most the {len(views)} images there are")
        )
    steps = params.epochs * steps_per_epoch
    pretext.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(
        params.optimizer, [(pretext.parameters(), 1.0)], params.learning_rate, params.momentum, params.weight_decay
    )
    learning_rate = partial(
        learning_rate_at,
        steps=steps,
        learning_rate=params.learning_rate,
        warmup_steps=params.warmup_steps,
        poly_power=params.poly_power,
    )
    state = TrainingState(pretext, optimizer)
    checkpoint.restore(state)
    yield from state.records
    batches = load_batches(views, len(views), params.batch_size, runtime.seed, state.step, steps, device)
    with checkpoint.kept_when_interrupted(state):
        while len(state.records) < params.epochs:
            epoch = len(state.records) + 1
            pretext.train()
            while state.step < epoch * steps_per_epoch:
                batch = {name: tensor.to(device, non_blocking=True) for name, tensor in next(batches).items()}
                seed_step(runtime.seed, state.step)
                set_learning_rate(optimizer, learning_rate(state.step))
                with autocast(device, runtime):
                    loss, figures = pretext(batch)
                if not math.isfinite(loss.item()):
                    raise UserError(
                        Problem(
                            "pretrain",
                            f"the loss became {loss.item()} in step {state.step + 1}",
                            "a finite number",
                            "Lower pretrain.learning_rate or raise pretrain.warmup_steps.",
                        )
                    )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                pretext.after_step()
                state.step += 1
                for name, value in {"loss": loss, **figures}.items():
                    state.sums[name] = state.sums.get(name, 0.0) + value.item()
                checkpoint.save_if_due(state)
                tick(
                    state.step * params.batch_size,
                    steps * params.batch_size,
                    f"epoch {epoch}/{params.epochs}, loss {loss.item():.3f}",
                )
            means = {name: total / steps_per_epoch for name, total in state.sums.items()}
            state.records.append({"epoch": epoch, "learning_rate": learning_rate(state.step - 1), **means})
            state.sums = {}
            yield state.records[-1]
    checkpoint.save(state)
