"""Training on images with masks alone, and the base class of the methods that also use images without masks."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, Generic, TypeVar

from torch import Tensor, nn

from pspnet.config.section import Section
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.network import SupervisedPSPNet

Params = TypeVar("Params", bound=Section)  # the settings of one method, as in pspnet/config/finetune.py
Batch = dict[str, Tensor]
Logits = tuple[Tensor, Tensor, dict[str, Tensor]]


class Method(nn.Module, Generic[Params]):
    """Only `supervised` is kept. All state that must survive a kill is in the `state_dict`."""

    streams: ClassVar[Mapping[str, float]] = {}  # views of images without masks -> their share of the loss
    strong_views: ClassVar[int] = 0

    def __init__(self, supervised: SupervisedPSPNet, preprocessing: Preprocessing, params: Params, ignore: int) -> None:
        super().__init__()
        self.supervised = supervised
        self.preprocessing, self.params, self.ignore = preprocessing, params, ignore

    def forward(self, batch: Batch) -> Logits:
        """Main and auxiliary coarse logits of the images with masks, and main ones of each stream in the batch."""
        main, auxiliary = self.supervised(self.preprocessing(batch["image"]))
        return main, auxiliary, {}

    @property
    def images_per_step(self) -> int:
        """The number of images without masks, over all devices."""
        return 0

    def first_step(self, steps: int) -> int:
        """The first step with images without masks."""
        return steps

    def weight_at(self, step: int, steps: int) -> float:
        """The weight of the pseudo labels' loss."""
        return 0.0

    def label(self, batch: Batch, sum_: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with pseudo labels. `sum_` adds up a tensor over all devices."""
        return batch

    def after_step(self, step: int, spread: Callable[[Iterable[Tensor]], None]) -> None:
        """Called with the number of steps done. `spread` copies the first process's tensors to all others."""

    def figures(self, classes: tuple[str, ...]) -> dict[str, float]:
        """Figures for the history, from the steps since the last call."""
        return {}

    def check(self, records: Sequence[Mapping[str, float]], classes: tuple[str, ...]) -> None:
        """Raise a UserError if the history shows that training has gone wrong."""
