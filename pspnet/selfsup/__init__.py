"""Self-supervised methods: tasks that train a backbone on images without masks.

A method turns images into views and a loss, and `training/pretrain.py` does the rest. May import `model` and everything
below. Start at `pretext.py`. A new method needs a module, its settings in `config/pretrain.py`, an entry in `METHODS`
and a test.
"""

from typing import Any

from pspnet.selfsup.densecl import DenseCL
from pspnet.selfsup.inpainting import Inpainting
from pspnet.selfsup.jigsaw import Jigsaw
from pspnet.selfsup.masked import Masked
from pspnet.selfsup.pretext import Pretext
from pspnet.selfsup.rotation import Rotation

METHODS: dict[str, type[Pretext[Any]]] = {
    "rotation": Rotation,
    "jigsaw": Jigsaw,
    "inpainting": Inpainting,
    "masked": Masked,
    "densecl": DenseCL,
}
