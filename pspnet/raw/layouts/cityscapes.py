"""Layout `cityscapes`: the official folders and the 19 classes.

raw/leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png
raw/gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png
"""

from collections.abc import Iterator

from pspnet.config.dataset import CityscapesParams
from pspnet.errors import Problem
from pspnet.raw.classes import Declared
from pspnet.raw.files import RawFiles
from pspnet.raw.layouts.pairs import FoundImage, Naming, pairs, split_by_folder
from pspnet.raw.masks import Numbers

LABEL_IDS = {  # name -> labelId; the trainId is the index
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
    "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27,
    "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
OTHER_LABEL_IDS = sorted({*range(34), 255} - {*LABEL_IDS.values()})  # 255 is -1 (license plates) in 8 bits
COLORS = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
    (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70),
    (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip


def find(source: CityscapesParams, raw: RawFiles) -> Iterator[FoundImage | Problem]:
    naming = Naming(
        source.images, source.masks, r"(.*)_leftImg8bit\.\w+", rf"(.*)_gtFine_{source.labels}\.png",
        other_names=r".*_gtFine_(labelIds|labelTrainIds|instanceIds|instanceTrainIds|color)\.png|.*_polygons\.json",
    )  # fmt: skip
    return pairs(naming, raw, lambda paths: Numbers(paths[0]), split_by_folder)


def classes(source: CityscapesParams, _: RawFiles) -> Declared:
    colors = dict(zip(LABEL_IDS, map(list, COLORS), strict=True))
    if source.labels == "labelIds":
        return Declared(dict(LABEL_IDS), colors, list(OTHER_LABEL_IDS))
    return Declared({name: place for place, name in enumerate(LABEL_IDS)}, colors, [255])
