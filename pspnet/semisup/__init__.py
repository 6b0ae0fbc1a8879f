"""Semi-supervised methods: fine-tuning that also learns from images without masks.

A method turns a batch into logits and pseudo labels; `training/finetune.py` does the rest. May import `losses`, `model`
and everything below. Start at `pseudo_labels.py`. A new method needs a module, its settings in `config/finetune.py`, an
entry in `METHODS` and a test.
"""

from typing import Any

from pspnet.semisup.mean_teacher import MeanTeacher
from pspnet.semisup.method import Method
from pspnet.semisup.unimatch import UniMatch

METHODS: dict[str, type[Method[Any]]] = {"none": Method, "mean_teacher": MeanTeacher, "unimatch": UniMatch}
