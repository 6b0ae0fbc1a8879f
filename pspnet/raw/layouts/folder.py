"""Layout `folder`: images and masks, told apart and paired by name patterns.

raw/images/street1/0001.jpg   raw/masks/street1/0001.png
"""

from collections.abc import Iterator

from pspnet.config.dataset import FolderParams
from pspnet.errors import Problem
from pspnet.raw.files import RawFiles
from pspnet.raw.layouts.pairs import FoundImage, Naming, pairs
from pspnet.raw.masks import Colors, Instances, Levels, Numbers, RawMask


def find(source: FolderParams, raw: RawFiles) -> Iterator[FoundImage | Problem]:
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
