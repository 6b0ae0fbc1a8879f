"""Layout `camvid`: frames from a few drives, with 11 classes. The group is the drive.

raw/images/train/0001TP_006690.jpg   raw/masks/train/0001TP_006690.png
raw/train/0001TP_006690.png          raw/trainannot/0001TP_006690.png     as in the SegNet tutorial
"""

from collections.abc import Iterator

from pspnet.config.dataset import CamvidParams
from pspnet.errors import Problem
from pspnet.raw.classes import Declared
from pspnet.raw.files import RawFiles
from pspnet.raw.layouts.annotations import split_of_folders
from pspnet.raw.layouts.pairs import FoundImage, Naming, pairs
from pspnet.raw.masks import Numbers

COLORS = {  # ordered by value
    "Sky": (128, 128, 128), "Building": (128, 0, 0), "Pole": (192, 192, 128), "Road": (128, 64, 128),
    "Pavement": (60, 40, 222), "Tree": (128, 128, 0), "SignSymbol": (192, 128, 128), "Fence": (64, 64, 128),
    "Car": (64, 0, 128), "Pedestrian": (64, 64, 0), "Bicyclist": (0, 128, 192),
}  # fmt: skip
VOID = len(COLORS)
FRAME = r"([A-Za-z0-9]+_\w+)"  # the drive and the number of the frame


def find(source: CamvidParams, raw: RawFiles) -> Iterator[FoundImage | Problem]:
    in_one_folder = source.images == source.masks
    naming = Naming(
        source.images, source.masks,
        rf"(?:.*/)?{'(?:train|val|test)/' if in_one_folder else ''}{FRAME}\.\w+",
        rf"(?:.*/)?{'(?:train|val|test)annot/' if in_one_folder else ''}{FRAME}\.png",
        other_names=r".*\.(txt|md)",  # the tutorial's lists
    )  # fmt: skip
    for found in pairs(naming, raw, lambda paths: Numbers(paths[0]), lambda _: None):
        if isinstance(found, Problem):
            yield found
        else:
            yield found._replace(split=split_of_folders(found.image), group=found.id.partition("_")[0])


def classes(_: CamvidParams, __: RawFiles) -> Declared:
    values = {name: value for value, name in enumerate(COLORS)}
    return Declared(values, {name: list(color) for name, color in COLORS.items()}, [VOID])
