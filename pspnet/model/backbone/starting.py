"""The weights a backbone starts from before any training here."""

from pathlib import Path
from typing import Literal

from pspnet.errors import Problem, UserError
from pspnet.model.backbone.imagenet import load_imagenet
from pspnet.model.backbone.preprocessing import IMAGENET, Preprocessing
from pspnet.model.backbone.pretrained import PretrainedBackbone
from pspnet.model.backbone.resnet import ResNet

Weights = Literal["random", "imagenet", "imported"]


def fill(network: ResNet, weights: Weights, imported: Path, of_dataset: Preprocessing) -> tuple[str, Preprocessing]:
    """Load `weights` into a random network; returns their origin and the preprocessing they expect."""
    if weights == "random":
        return "random", of_dataset
    if weights == "imagenet":
        load_imagenet(network)
        return "imagenet", IMAGENET
    if not imported.exists():
        fix = (
            "`pspnet weights import FILE --from PROJECT` makes them; `dvc pull` fetches what a colleague has imported."
        )
        raise UserError(Problem("backbone.weights: imported", f"{imported} is missing", "imported weights", fix))
    start = PretrainedBackbone.open(imported)
    start.load_into(network, imported)
    return start.weights, start.preprocessing
