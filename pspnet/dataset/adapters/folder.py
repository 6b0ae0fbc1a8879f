"""Layout `folder`: images and masks told apart and paired by patterns on their names.

raw/images/street1/0001.jpg   raw/masks/street1/0001.png
"""

from collections.abc import Iterator

from pspnet.config.dataset import FolderParams
from pspnet.dataset.adapters.pairs import Found, Naming, pairs
from pspnet.dataset.masks import Colors, Instances, Levels, Numbers, RawMask
from pspnet.dataset.raw import RawFiles
from pspnet.errors import Problem


def find(source: FolderParams, raw: RawFiles) -> Iterator[Found | Problem]:
    def mask(paths: list[str]) -> RawMask:
        match source.mask_kind:
            case "numbers":
                return Numbers(paths[0])
            case "colors":
                return Colors(paths[0])
            case "levels":
                return Levels(paths[0], source.mask_threshold)
            case "instances":
                return Instances(tuple(paths), source.mask_threshold)

    naming = Naming(
        source.images, source.masks, source.image_names, source.mask_names,
        several_masks=source.mask_kind == "instances",
    )  # fmt: skip
    return pairs(naming, raw, mask, lambda _: None)
