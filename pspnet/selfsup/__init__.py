"""Self-supervised methods: what a backbone can learn from images that nobody has annotated."""

from pspnet.selfsup.inpainting import Inpainting
from pspnet.selfsup.jigsaw import Jigsaw
from pspnet.selfsup.pretext import Pretext
from pspnet.selfsup.rotation import Rotation

METHODS: dict[str, type[Pretext]] = {"rotation": Rotation, "jigsaw": Jigsaw, "inpainting": Inpainting}
