"""Training on images with masks, and with a method of `semisup` also on others. The best weights on val are kept."""

import math
from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from pspnet.config.backbone import BackboneParams
from pspnet.config.finetune import FinetuneParams
from pspnet.errors import Problem, UserError
from pspnet.evaluation.measuring import measure
from pspnet.losses.segmentation import SegmentationLoss, supervised_loss
from pspnet.metrics import mean_iou, pixel_accuracy
from pspnet.model.averaging import move_average, start_average
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.backbone.resnet import ResNet
from pspnet.model.network import Architecture, PSPNet, SupervisedPSPNet
from pspnet.prediction.image.predictor import Member, Predictor
from pspnet.prediction.image.protocol import PredictionProtocol
from pspnet.semisup import METHODS
from pspnet.training.data import FinetuneData
from pspnet.training.shared.checkpoint import Record
from pspnet.training.shared.loading import Batch
from pspnet.training.shared.runtime import autocast, compiled
from pspnet.training.shared.steps import Session, Steps


def build_network(backbone: BackboneParams, finetune: FinetuneParams, classes: int, seed: int) -> SupervisedPSPNet:
    """Return the network with random weights."""
    own = backbone.model_dump(include={"depth", "width", "stem", "dilation"})
    own |= finetune.model_dump(include={"output_stride", "dropout", "align_corners", "decoder", "pyramid_weights"})
    torch.manual_seed(seed)
    return SupervisedPSPNet(PSPNet(Architecture(classes=classes, **own)))


def finetune(
    supervised: SupervisedPSPNet,
    preprocessing: Preprocessing,
    data: FinetuneData,
    loss_of: SegmentationLoss,
    params: FinetuneParams,
    session: Session,
) -> Iterator[Record]:
    """Train `supervised` in place, ending with its best weights on val, and yield one record per validation.

    After a resume, the records of all earlier validations come first.
    """
    peers, runtime, val = session.peers, session.runtime, data.val
    supervised.to(peers.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    peers.share_statistics(supervised)
    frozen = freeze(supervised.network.backbone, params.frozen_layers)
    groups = [
        (supervised.network.backbone.parameters(), params.backbone_learning_rate_factor),
        (head_parameters(supervised), params.head_learning_rate_factor),
    ]
    average = start_average(supervised) if params.ema_decay else None
    method = METHODS[params.unlabeled.kind](supervised, preprocessing, params.unlabeled, data.ignore)
    steps = Steps("finetune", session, method, groups, data.train, params, average)
    if data.unlabeled is not None:
        steps.add(data.unlabeled, method.images_per_step, method.first_step(steps.count))
    ends = validation_steps(params, steps.count)
    state, logits_of = steps.state, compiled(steps.shared, runtime)
    kept = supervised if average is None else average  # this is what is evaluated and saved in the bundle
    # Twice the training crop is the largest context that the network has learned to use, and if a batch fits into
    # memory, so does a window of this size.
    window = 2 * max(params.crop_height_px, params.crop_width_px)
    protocol = PredictionProtocol(window, window // 4, scales=[1.0], flip=False)
    predictor = Predictor([Member(kept.network, preprocessing)], protocol, peers.device, runtime.precision)

    def share(part: Batch, whole: Mapping[str, Tensor], pseudo_weight: float) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the part's share of the loss. `whole` is the weight of all pixels of the step on all devices: those
        with a mask, and those that the teacher predicted.
        """
        with autocast(peers.device, runtime):
            *logits, streams = logits_of(part)
        weight = loss_of.weight(part["mask"]) / whole["mask"]
        main, auxiliary = (loss_of(one, part["mask"]) for one in logits)
        total = weight * supervised_loss(main, auxiliary, params.auxiliary_weight)
        figures = {"main_loss": weight * main, "auxiliary_loss": weight * auxiliary}
        if method.streams:
            losses = (method.streams[name] * loss_of.total(one, part[f"{name}_mask"]) for name, one in streams.items())
            figures["unlabeled_loss"] = sum(losses, main.new_zeros(())) / whole.get("predicted", 1)
            total = total + pseudo_weight * figures["unlabeled_loss"]
        # The loss is multiplied by the number of devices because `shared` averages gradients over them.
        return total * peers.count, figures

    def note(doing: str) -> str:
        last = f", val mIoU {state.records[-1]['val_mean_iou']:.3f}" if state.records else ""
        return f"epoch {state.step / steps.per_epoch:.1f}/{params.epochs:g}, {doing}{last}"

    def tick_val(measured: int) -> None:
        if measured <= len(val) // peers.count:  # every device measures at least this many images
            steps.tick(note(f"val {measured * peers.count}/{len(val)}"))

    yield from state.records
    with steps.batches() as batches:
        while not is_over(state.records, params):
            train_mode(supervised, frozen)
            while state.step < ends[len(state.records)]:
                batch = steps.begin(batches)
                with autocast(peers.device, runtime):
                    batch = method.label(batch, peers.sum)
                whole: dict[str, Tensor] = {  # it is 0 if nothing is annotated
                    name: peers.sum(loss_of.weight(batch[name])).clamp(min=torch.finfo().tiny)
                    for name in ("mask", "predicted")
                    if name in batch
                }
                pseudo_weight = method.weight_at(state.step, steps.count)
                figures = steps.backward(batch, partial(share, whole=whole, pseudo_weight=pseudo_weight))
                loss = supervised_loss(figures["main_loss"], figures["auxiliary_loss"], params.auxiliary_weight)
                loss += pseudo_weight * figures.get("unlabeled_loss", 0.0)
                figures = {"loss": loss, **figures}
                if not all(map(math.isfinite, figures.values())):
                    raise steps.not_finite(batch, figures, masks_fit=math.isfinite(whole["mask"].item()))
                steps.update()
                method.after_step(state.step, peers.spread)
                if average is not None:
                    move_average(average, supervised, params.ema_decay, state.step)
                steps.end(figures, note(f"loss {loss:.3f}, data wait {batches.waited_share:.0%}"))
            peers.spread(kept.buffers())
            share_of_val = (val[position] for position in range(peers.rank, len(val), peers.count))
            confusion = peers.sum_counts(measure(predictor, share_of_val, data.classes, data.ignore, tick_val)[0])
            if not confusion.any():
                raise UserError(Problem("val", "has no annotated pixels", "at least one pixel with a class"))
            record = {
                "step": state.step,
                "epoch": round(state.step / steps.per_epoch, 2),
                "learning_rate": steps.learning_rate_at(state.step - 1),
                **steps.means(),
                **method.figures(data.classes),
                "val_mean_iou": mean_iou(confusion),
                "val_pixel_accuracy": pixel_accuracy(confusion),
            }
            if record["val_mean_iou"] > max((r["val_mean_iou"] for r in state.records), default=-1):
                state.best = {name: tensor.clone() for name, tensor in kept.state_dict().items()}
            state.records.append(record)
            yield record
            method.check(state.records, data.classes)
    session.checkpoint.save(state)
    supervised.load_state_dict(state.best)


def validation_steps(params: FinetuneParams, steps: int) -> list[int]:
    """Return the evenly spaced steps after which the network is evaluated on val. The last of them ends training."""
    if params.validations > steps:
        problem = Problem("finetune.validations", f"is {params.validations}", f"at most {steps}, the number of steps")
        raise UserError(problem)
    return [round(steps * turn / params.validations) for turn in range(1, params.validations + 1)]


def is_over(records: list[Record], params: FinetuneParams) -> bool:
    """Return whether training ends now. This depends only on the records, so a resumed run ends at the same step."""
    best = max(range(len(records)), key=lambda turn: records[turn]["val_mean_iou"], default=0)
    without_better = len(records) - 1 - best
    return len(records) == params.validations or 0 < params.patience_validations <= without_better


def freeze(backbone: ResNet, layers: int) -> list[nn.Module]:
    """Freeze the first layers and return their modules. Their BatchNorm statistics must not change either."""
    frozen = [module for layer in backbone.layers()[:layers] for module in layer]
    for module in frozen:
        module.requires_grad_(False)
    return frozen


def train_mode(supervised: SupervisedPSPNet, frozen: list[nn.Module]) -> None:
    supervised.train()
    for module in frozen:
        module.eval()


def head_parameters(supervised: SupervisedPSPNet) -> Iterator[nn.Parameter]:
    """Yield all parameters outside the backbone."""
    for name, parameter in supervised.named_parameters():
        if not name.startswith("network.backbone."):
            yield parameter
