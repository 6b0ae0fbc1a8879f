"""Supervised training: cross-entropy on the main and the auxiliary logits, the best epoch on val kept."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

from pspnet.config.finetune import FinetuneParams
from pspnet.config.runtime import RuntimeParams
from pspnet.dataset.annotated import AnnotatedImages
from pspnet.dataset.segmentation import TrainingCrops
from pspnet.errors import Problem, UserError
from pspnet.evaluation import measure
from pspnet.losses import cross_entropy, supervised_loss
from pspnet.metrics import mean_iou, pixel_accuracy
from pspnet.model.backbone import ResNet
from pspnet.model.network import SupervisedPSPNet
from pspnet.model.preprocessing import Preprocessing
from pspnet.prediction import Predictor
from pspnet.training.checkpoint import Checkpoint, Record, TrainingState
from pspnet.training.loading import load_batches
from pspnet.training.optimizer import build_optimizer, learning_rate_at, set_learning_rate
from pspnet.training.runtime import autocast, seed_step


def finetune(
    supervised: SupervisedPSPNet,
    preprocessing: Preprocessing,
    crops: TrainingCrops,
    val: AnnotatedImages,
    classes: tuple[str, ...],
    ignore: int,
    params: FinetuneParams,
    runtime: RuntimeParams,
    device: torch.device,
    checkpoint: Checkpoint,
    tick: Callable[[int, int, str], None],
) -> Iterator[Record]:
    """Train `supervised` in place, to the weights of its best epoch; yields a record per epoch.

    After a resume the records of all earlier epochs come first.
    """
    steps_per_epoch = len(crops) // params.batch_size
    if steps_per_epoch == 0:
        raise UserError(
            Problem(
                "finetune.batch_size", f"is {params.batch_size}", f"at most the {len(crops)} training images there are"
            )
        )
    steps = params.epochs * steps_per_epoch
    images = steps * params.batch_size
    supervised.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    frozen = freeze(supervised.network.backbone, params.frozen_layers)
    optimizer = build_optimizer(
        params.optimizer,
        [
            (supervised.network.backbone.parameters(), params.backbone_learning_rate_factor),
            (head_parameters(supervised), 1.0),
        ],
        params.learning_rate,
        params.momentum,
        params.weight_decay,
    )
    # Twice the training crop is the largest context the network can be trusted with, and fits where a batch fitted.
    window = 2 * max(params.crop_height_px, params.crop_width_px)
    predictor = Predictor(supervised.network, preprocessing, window, window // 4, device, runtime.precision)
    learning_rate = partial(
        learning_rate_at,
        steps=steps,
        learning_rate=params.learning_rate,
        warmup_steps=params.warmup_steps,
        poly_power=params.poly_power,
    )
    state = TrainingState(supervised, optimizer)
    checkpoint.restore(state)
    yield from state.records

    def told(doing: str) -> str:
        last = f", val mIoU {state.records[-1]['val_mean_iou']:.3f}" if state.records else ""
        return f"epoch {len(state.records) + 1}/{params.epochs}, {doing}{last}"

    def tick_val(measured: int) -> None:
        tick(state.step * params.batch_size, images, told(f"val {measured}/{len(val)}"))

    batches = load_batches(crops, len(crops), params.batch_size, runtime.seed, state.step, steps, device)
    with checkpoint.kept_when_interrupted(state):
        while len(state.records) < params.epochs:
            epoch = len(state.records) + 1
            train_mode(supervised, frozen)
            while state.step < epoch * steps_per_epoch:
                batch = {name: tensor.to(device, non_blocking=True) for name, tensor in next(batches).items()}
                seed_step(runtime.seed, state.step)
                set_learning_rate(optimizer, learning_rate(state.step))
                with autocast(device, runtime):
                    main_logits, auxiliary_logits = supervised(preprocessing(batch["image"]))
                main_loss = cross_entropy(main_logits, batch["mask"], ignore)
                auxiliary_loss = cross_entropy(auxiliary_logits, batch["mask"], ignore)
                loss = supervised_loss(main_loss, auxiliary_loss, params.auxiliary_weight)
                if not math.isfinite(loss.item()):
                    raise UserError(
                        Problem(
                            "finetune",
                            f"the loss became {loss.item()} in step {state.step + 1}",
                            "a finite number",
                            "Lower finetune.learning_rate or raise finetune.warmup_steps.",
                        )
                    )
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                state.step += 1
                losses = {"loss": loss, "main_loss": main_loss, "auxiliary_loss": auxiliary_loss}
                for name, value in losses.items():
                    state.sums[name] = state.sums.get(name, 0.0) + value.item()
                checkpoint.save_if_due(state)
                tick(state.step * params.batch_size, images, told(f"loss {loss.item():.3f}"))
            confusion, _ = measure(predictor, val, classes, ignore, tick_val)
            if not confusion.any():
                raise UserError(Problem("val", "has no annotated pixel", "masks that are not ignored throughout"))
            means = {name: total / steps_per_epoch for name, total in state.sums.items()}
            record = {
                "epoch": epoch,
                "learning_rate": learning_rate(state.step - 1),
                **means,
                "val_mean_iou": mean_iou(confusion),
                "val_pixel_accuracy": pixel_accuracy(confusion),
            }
            if record["val_mean_iou"] > max((r["val_mean_iou"] for r in state.records), default=-1):
                state.best = {name: tensor.clone() for name, tensor in supervised.state_dict().items()}
            state.records.append(record)
            state.sums = {}
            yield record
    checkpoint.save(state)
    supervised.load_state_dict(state.best)


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
    for part in (supervised.network.pyramid, supervised.network.head, supervised.auxiliary_head):
        yield from part.parameters()
