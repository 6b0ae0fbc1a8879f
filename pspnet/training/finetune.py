"""Supervised training: one loss on the main and on the auxiliary logits, the best epoch on val kept."""

import math
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from functools import partial

import torch
from torch import nn

from pspnet.config.finetune import FinetuneParams
from pspnet.config.runtime import RuntimeParams
from pspnet.dataset.annotated import AnnotatedImages
from pspnet.dataset.segmentation import TrainingCrops
from pspnet.errors import Problem, UserError
from pspnet.evaluation import measure
from pspnet.losses import SegmentationLoss, supervised_loss
from pspnet.metrics import mean_iou, pixel_accuracy
from pspnet.model.backbone import ResNet
from pspnet.model.network import SupervisedPSPNet
from pspnet.model.preprocessing import Preprocessing
from pspnet.prediction import Member, Predictor
from pspnet.protocol import PredictionProtocol
from pspnet.training.averaging import move_average, start_average
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


def finetune(
    supervised: SupervisedPSPNet,
    preprocessing: Preprocessing,
    crops: TrainingCrops,
    val: AnnotatedImages,
    classes: tuple[str, ...],
    ignore: int,
    loss_of: SegmentationLoss,
    params: FinetuneParams,
    runtime: RuntimeParams,
    peers: Peers,
    checkpoint: Checkpoint,
    tick: Callable[[int, int, str], None],
) -> Iterator[Record]:
    """Train `supervised` in place, to the weights of its best epoch; yields a record per epoch.

    After a resume the records of all earlier epochs come first.
    """
    check_shares("finetune", params.batch_size, params.accumulation_steps, peers)
    steps_per_epoch = len(crops) // params.batch_size
    if steps_per_epoch == 0:
        raise UserError(
            Problem(
                "finetune.batch_size", f"is {params.batch_size}", f"at most the {len(crops)} training images there are"
            )
        )
    steps = params.epochs * steps_per_epoch
    images = steps * params.batch_size
    device, tick = peers.device, peers.together(tick)
    supervised.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    peers.share_statistics(supervised)
    frozen = freeze(supervised.network.backbone, params.frozen_layers)
    optimizer = build_optimizer(
        params.optimizer,
        [
            (supervised.network.backbone.parameters(), params.backbone_learning_rate_factor),
            (head_parameters(supervised), params.head_learning_rate_factor),
        ],
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
    average = start_average(supervised) if params.ema_decay else None
    kept = supervised if average is None else average  # what is measured, and becomes the bundle
    # Twice the training crop is the largest context the network can be trusted with, and fits where a batch fitted.
    window = 2 * max(params.crop_height_px, params.crop_width_px)
    protocol = PredictionProtocol(window, window // 4, scales=[1.0], flip=False)
    predictor = Predictor([Member(kept.network, preprocessing)], protocol, device, runtime.precision)
    state = TrainingState(supervised, optimizer, average=average)
    checkpoint.restore(state)
    peers.check_step(state.step, checkpoint.folder)
    shared = peers.shared(supervised)
    logits_of = compiled(shared, runtime)
    yield from state.records

    def told(doing: str) -> str:
        last = f", val mIoU {state.records[-1]['val_mean_iou']:.3f}" if state.records else ""
        return f"epoch {len(state.records) + 1}/{params.epochs}, {doing}{last}"

    def tick_val(measured: int) -> None:
        if measured <= len(val) // peers.count:  # so many each device measures
            tick(state.step * params.batch_size, images, told(f"val {measured * peers.count}/{len(val)}"))

    batches = load_batches(crops, len(crops), params.batch_size, runtime.seed, state.step, steps, peers)
    with closing(batches), checkpoint.kept_when_interrupted(state):
        while not is_over(state.records, params):
            epoch = len(state.records) + 1
            train_mode(supervised, frozen)
            while state.step < epoch * steps_per_epoch:
                batch = {name: tensor.to(device, non_blocking=True) for name, tensor in next(batches).items()}
                set_learning_rate(optimizer, learning_rate(state.step))
                optimizer.zero_grad()
                whole = peers.sum(loss_of.weight(batch["mask"])).clamp(min=torch.finfo().tiny)  # 0: none is annotated
                losses = torch.zeros(2, device=device)
                for number, part in enumerate(parts_of(batch, params.accumulation_steps)):
                    seed_step(runtime.seed, state.step, peers.rank, number)
                    with peers.alone(shared) if number + 1 < params.accumulation_steps else nullcontext():
                        with autocast(device, runtime):
                            main_logits, auxiliary_logits = logits_of(preprocessing(part["image"]))
                        main, auxiliary = (loss_of(logits, part["mask"]) for logits in (main_logits, auxiliary_logits))
                        share = loss_of.weight(part["mask"]) / whole  # of the whole step's loss, over parts and devices
                        total = share * supervised_loss(main, auxiliary, params.auxiliary_weight)
                        torch.autograd.backward(total * peers.count)  # as `shared` takes the mean over devices
                    losses += share * torch.stack([main, auxiliary]).detach()
                norm = gradient_norm(supervised)
                main_loss, auxiliary_loss, length = torch.cat([peers.sum(losses), norm[None]]).tolist()
                figures = {
                    "loss": supervised_loss(main_loss, auxiliary_loss, params.auxiliary_weight),
                    "main_loss": main_loss,
                    "auxiliary_loss": auxiliary_loss,
                    "gradient_norm": length,
                }
                if not all(map(math.isfinite, figures.values())):
                    keys = keys_of(state.step, len(crops), params.batch_size, runtime.seed)
                    sources = [crops.source(position) for _, position in keys]
                    raise not_finite(
                        "finetune", figures, state.step + 1, batch, sources, checkpoint.folder, peers.rank,
                        masks_fit=math.isfinite(whole.item()),
                    )  # fmt: skip
                clip_gradient(supervised, norm, params.gradient_clip_norm)
                optimizer.step()
                if average is not None:
                    move_average(average, supervised, params.ema_decay, state.step)
                state.step += 1
                for name, value in figures.items():
                    state.sums[name] = state.sums.get(name, 0.0) + value
                checkpoint.save_if_due(state)
                tick(
                    state.step * params.batch_size,
                    images,
                    told(f"loss {figures['loss']:.3f}, data wait {batches.waited_share:.0%}"),
                )
            peers.spread(kept.buffers())
            share_of_val = (val[position] for position in range(peers.rank, len(val), peers.count))
            confusion = peers.sum_counts(measure(predictor, share_of_val, classes, ignore, tick_val)[0])
            if not confusion.any():
                raise UserError(Problem("val", "has no annotated pixel", "masks that are not ignored throughout"))
            record = {
                "epoch": epoch,
                "learning_rate": learning_rate(state.step - 1),
                **{name: total / steps_per_epoch for name, total in state.sums.items()},
                "val_mean_iou": mean_iou(confusion),
                "val_pixel_accuracy": pixel_accuracy(confusion),
            }
            if record["val_mean_iou"] > max((r["val_mean_iou"] for r in state.records), default=-1):
                state.best = {name: tensor.clone() for name, tensor in kept.state_dict().items()}
            state.records.append(record)
            state.sums = {}
            yield record
    checkpoint.save(state)
    supervised.load_state_dict(state.best)


def is_over(records: list[Record], params: FinetuneParams) -> bool:
    """A function of the records alone, so that a resumed training ends where it would have ended."""
    best = max(range(len(records)), key=lambda epoch: records[epoch]["val_mean_iou"], default=0)
    without_better = len(records) - 1 - best
    return len(records) == params.epochs or 0 < params.patience_epochs <= without_better


def freeze(backbone: ResNet, layers: int) -> list[nn.Module]:
    """Fix the first layers' weights; returns their modules, whose BatchNorm must keep its statistics too."""
    frozen = [module for layer in backbone.layers()[:layers] for module in layer]
    for module in frozen:
        module.requires_grad_(False)
    return frozen


def train_mode(supervised: SupervisedPSPNet, frozen: list[nn.Module]) -> None:
    supervised.train()
    for module in frozen:
        module.eval()


def head_parameters(supervised: SupervisedPSPNet) -> Iterator[nn.Parameter]:
    """All but the backbone's."""
    for name, parameter in supervised.named_parameters():
        if not name.startswith("network.backbone."):
            yield parameter
