"""The weights a backbone starts from before any training here."""

from pathlib import Path
from typing import Literal

from pspnet.config.backbone import BackboneParams
from pspnet.errors import Problem, UserError
from pspnet.model.backbone.imagenet import load_imagenet
from pspnet.model.backbone.preprocessing import IMAGENET, Preprocessing
from pspnet.model.backbone.pretrained import PretrainedBackbone, random_backbone
from pspnet.model.backbone.resnet import OutputStride, ResNet

Weights = Literal["random", "imagenet", "imported"]


def starting_backbone(
    params: BackboneParams, output_stride: OutputStride, seed: int, imported: Path, of_dataset: Preprocessing
) -> tuple[ResNet, str, Preprocessing]:
    """Return the backbone with the weights selected by `params`, their origin, and the preprocessing they expect."""
    network = random_backbone(params.depth, params.width, output_stride, seed, params.stem, params.dilation)
    return network, *_fill(network, params.weights, imported, of_dataset)


def _fill(network: ResNet, weights: Weights, imported: Path, of_dataset: Preprocessing) -> tuple[str, Preprocessing]:
    if weights == "random":
        return "random", of_dataset
    if weights == "imagenet":
        load_imagenet(network)
        return "imagenet", IMAGENET
    if not imported.exists():
        fix = "`pspnet weights import FILE --from PROJECT` creates them, and `dvc pull` fetches a colleague's import."
        raise UserError(Problem("backbone.weights: imported", f"{imported} is missing", "imported weights", fix))
    start = PretrainedBackbone.open(imported)
    start.load_into(network, imported)
    return start.weights, start.preprocessing
