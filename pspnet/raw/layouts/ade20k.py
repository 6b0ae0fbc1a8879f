"""Layout `ade20k`: the folders and 150 classes of the scene parsing benchmark.

raw/images/training/ADE_train_00000001.jpg   raw/annotations/training/ADE_train_00000001.png
"""

from collections.abc import Iterator

from pspnet.config.dataset import Ade20kParams
from pspnet.errors import Problem, UserError
from pspnet.raw.classes import Declared
from pspnet.raw.files import RawFile, RawFiles
from pspnet.raw.layouts.pairs import FoundImage, Naming, pairs, split_by_folder
from pspnet.raw.masks import Numbers

NOT_ANNOTATED = 0
NAMES = (  # from value 1
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass", "cabinet", "sidewalk",
    "person", "earth", "door", "table", "mountain", "plant", "curtain", "chair", "car", "water", "painting", "sofa",
    "shelf", "house", "sea", "mirror", "rug", "field", "armchair", "seat", "fence", "desk", "rock", "wardrobe", "lamp",
    "bathtub", "railing", "cushion", "base", "box", "column", "signboard", "chest of drawers", "counter", "sand",
    "sink", "skyscraper", "fireplace", "refrigerator", "grandstand", "path", "stairs", "runway", "case", "pool table",
    "pillow", "screen door", "stairway", "river", "bridge", "bookcase", "blind", "coffee table", "toilet", "flower",
    "book", "hill", "bench", "countertop", "stove", "palm", "kitchen island", "computer", "swivel chair", "boat",
    "bar", "arcade machine", "hovel", "bus", "towel", "light", "truck", "tower", "chandelier", "awning", "streetlight",
    "booth", "television", "airplane", "dirt track", "apparel", "pole", "land", "bannister", "escalator", "ottoman",
    "bottle", "buffet", "poster", "stage", "van", "ship", "fountain", "conveyer belt", "canopy", "washer", "plaything",
    "swimming pool", "stool", "barrel", "basket", "waterfall", "tent", "bag", "minibike", "cradle", "oven", "ball",
    "food", "step", "tank", "trade name", "microwave", "pot", "animal", "bicycle", "lake", "dishwasher", "screen",
    "blanket", "sculpture", "hood", "sconce", "vase", "traffic light", "tray", "ashcan", "fan", "pier", "crt screen",
    "plate", "monitor", "bulletin board", "shower", "radiator", "glass", "clock", "flag",
)  # fmt: skip


def find(source: Ade20kParams, raw: RawFiles) -> Iterator[FoundImage | Problem]:
    full = [file.path for file in raw.below(".") if isinstance(file, RawFile) and file.name.endswith("_seg.png")]
    if full:
        found = f"belongs to the full ADE20K, which has color masks for about 3,000 names ({len(full):,} *_seg.png)"
        fix = "Download ADEChallengeData2016.zip instead: it has the same images."
        raise UserError(Problem(str(raw.root / min(full)), found, "scene parsing, with 150 classes", fix))
    naming = Naming(source.images, source.masks, r"(.*)\.jpg", r"(.*)\.png")
    return pairs(naming, raw, lambda paths: Numbers(paths[0]), split_by_folder)


def classes(_: Ade20kParams, __: RawFiles) -> Declared:
    return Declared({name: value for value, name in enumerate(NAMES, start=1)}, {}, [NOT_ANNOTATED])
