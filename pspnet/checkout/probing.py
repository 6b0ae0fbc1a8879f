"""`pspnet probe`: a first answer to whether a backbone has learned something useful, within a minute or two."""

import math
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from pspnet.config.params import Params
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.errors import Problem, UserError
from pspnet.evaluation.pretraining.probing import Probe, compare_with_random, in_words
from pspnet.machine import terminal
from pspnet.model.backbone.pretrained import PretrainedBackbone, random_backbone
from pspnet.model.device import configure


def probe(params: Params, prepared: Path, backbone: Path) -> None:
    """Print the IoU on val of linear classifiers on the frozen features of `backbone` and of random weights."""
    dataset, found = PreparedDataset.open(prepared), PretrainedBackbone.open(backbone)
    if found.pretraining == "none":
        fix = "Set pretrain.method or backbone.weights, and run: pspnet retrain"
        raise UserError(Problem(str(backbone), "has random weights", "a pretrained or imported backbone", fix))
    own, output_stride, seed = params.backbone, params.pretrain.output_stride, params.runtime.seed
    network = random_backbone(own.depth, own.width, output_stride, seed, own.stem, own.dilation)
    found.load_into(network, backbone)
    device = configure(params.runtime)
    with terminal.progress("probe") as tick:
        probes = compare_with_random(
            network, found.preprocessing, found.pretraining, dataset, own, output_stride, seed, device, tick
        )
    if not probes:
        fix = "A linear classifier learns from masks of train and is measured on masks of val."
        raise UserError(Problem(str(prepared), "has no masks in train or val", "masks in both", fix))
    terminal.out.print(_table(probes))
    terminal.out.print(in_words(probes))


def _table(probes: list[Probe]) -> Table:
    table = Table("IoU on val", show_edge=False, pad_edge=False)
    for one in probes:
        table.add_column(escape(one.weights), justify="right")
    for row, name in enumerate(probes[0].classes):
        table.add_row(escape(name), *(_score(one.class_iou[row]) for one in probes))
    table.add_section()
    table.add_row("mean", *(_score(one.mean_iou) for one in probes))
    return table


def _score(value: float) -> str:
    return "absent" if math.isnan(value) else f"{value:.3f}"
