import weakref
from collections.abc import Iterator

import numpy as np
import torch

from pspnet.dataset.annotated import Annotated
from pspnet.evaluation.measuring import measure
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.network import Architecture, PSPNet
from pspnet.prediction.image.predictor import Member
from tests.predicting import predictor
from tests.raw.rawdata import Pixels, noise


def test_measuring_holds_at_most_two_images() -> None:
    """Each image has a different size, so each image is predicted on its own."""
    torch.manual_seed(0)
    one = Member(PSPNet(Architecture(18, 0.125, 32, 3, dropout=0.1)), Preprocessing((0.5,) * 3, (0.25,) * 3))
    held: list[weakref.ref[Pixels]] = []
    most = 0

    def samples() -> Iterator[Annotated]:
        nonlocal most
        for number in range(12):
            most = max(most, sum(reference() is not None for reference in held))
            sample = Annotated(str(number), "group", noise(32, 33 + number), np.zeros((32, 33 + number), np.uint8))
            held.append(weakref.ref(sample.image))
            yield sample
            del sample

    confusion, table = measure(predictor(one), samples(), ("a", "b", "c"), 255, lambda done: None)
    assert confusion.sum() == table["pixels"].sum() == sum(32 * (33 + number) for number in range(12))
    assert most <= 2
