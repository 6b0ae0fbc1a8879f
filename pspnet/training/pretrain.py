"""Self-supervised training: one loop for all methods in `selfsup`."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pspnet.config.pretrain import PretrainParams
from pspnet.dataset.augmentation import Augmentation
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.dataset.views import UnlabeledViews
from pspnet.errors import UserError
from pspnet.selfsup.pretext import Pretext
from pspnet.training.shared.checkpoint import Record
from pspnet.training.shared.loading import Batch, collate
from pspnet.training.shared.runtime import autocast, compiled
from pspnet.training.shared.steps import Session, Steps


def open_views(
    dataset: PreparedDataset,
    splits: Sequence[str],
    method: type[Pretext[Any]],
    params: PretrainParams,
    fill: tuple[int, int, int],
    seed: int,
) -> UnlabeledViews:
    """Return all images in `splits`, with or without masks, as views created by `method`."""
    index, size = dataset.index(), (params.crop_px, params.crop_px)
    augmentation = Augmentation.from_params(params, *size, fill=fill, ignore=dataset.ignore)
    own = index[index["split"].isin(splits)]
    return UnlabeledViews(dataset.reader(), own, augmentation, method.views, params.method, seed)


def pretrain(
    pretext: Pretext[Any], views: UnlabeledViews, params: PretrainParams, session: Session
) -> Iterator[Record]:
    """Train `pretext` and its backbone in place, and yield a record per epoch, including earlier epochs after a
    resume.
    """
    peers, runtime = session.peers, session.runtime
    pretext.to(peers.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    peers.share_statistics(pretext)
    groups = [(pretext.parameters(), 1.0)]
    steps = Steps("pretrain", session, pretext, groups, views, params)
    state, loss_of = steps.state, compiled(steps.shared, runtime)
    parts = params.optimizer.accumulation_steps

    def share(part: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        with autocast(peers.device, runtime):
            loss, others = loss_of(part)
        return loss / parts, {name: value / (parts * peers.count) for name, value in {"loss": loss, **others}.items()}

    yield from state.records
    with steps.batches() as batches:
        while not is_over(state.records, params, pretext):
            epoch = len(state.records) + 1
            pretext.train()
            while state.step < epoch * steps.per_epoch:
                batch = steps.begin(batches)
                figures = steps.backward(batch, share)
                if not all(map(math.isfinite, figures.values())):
                    raise steps.not_finite(batch, figures)
                steps.update()
                pretext.after_step()
                waited = f"data wait {batches.waited_share:.0%}"
                steps.end(figures, f"epoch {epoch}/{params.epochs}, loss {figures['loss']:.3f}, {waited}")
            learning_rate = steps.learning_rate_at(state.step - 1)
            state.records.append({"step": state.step, "epoch": epoch, "learning_rate": learning_rate, **steps.means()})
            yield state.records[-1]
    session.checkpoint.save(state)


def is_over(records: Sequence[Record], params: PretrainParams, pretext: Pretext[Any]) -> bool:
    """Return whether training ends now, or raise a UserError if it has collapsed. This depends only on the records, so
    a resumed run ends at the same step.
    """
    if records and (problem := pretext.collapse(records)):
        raise UserError(problem)
    return len(records) == params.epochs


@torch.no_grad()
def reconstructions(
    pretext: Pretext[Any], views: UnlabeledViews, count: int
) -> list[tuple[str, dict[str, NDArray[np.uint8]]]]:
    """Return what the method makes of a few images, by their path in the raw data. Most methods reconstruct nothing."""
    pretext.eval()
    positions = [round(place) for place in np.linspace(0, len(views) - 1, count)]
    batch = collate([views[0, position] for position in positions])
    device = next(pretext.parameters()).device
    pictures = {
        name: pretext.preprocessing.pixels(images).permute(0, 2, 3, 1).cpu().numpy()  # (N, H, W, 3)
        for name, images in pretext.pictures({name: tensor.to(device) for name, tensor in batch.items()}).items()
    }
    return [
        (views.source(position), {name: images[number] for name, images in pictures.items()})
        for number, position in enumerate(positions)
        if pictures
    ]
