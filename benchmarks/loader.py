"""Measures augmented crops per second on one core, from CamVid: ours versus the same augmentation written in OpenCV.

python benchmarks/loader.py --data FOLDER      FOLDER is used as data/raw of recipes/camvid.yaml

Every pipeline starts with the same encoded image and ends with a crop of 321 x 321 px: scale 0.5 to 2, half rotated by
up to 10 degrees, half blurred, half mirrored. The OpenCV pipelines read the raw mask files; ours reads the masks as
`prepare` packed them. Seconds are CPU time, which other processes hardly affect.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pipeline import ROOT, processor

from pspnet.config.params import load_params
from pspnet.dataset.augmentation import Augmentation
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.dataset.training_samples import TrainingCrops
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.raw.inventory import take_inventory
from pspnet.stages import prepare
from pspnet.tracking.run import StageRun

RECIPE = ROOT / "recipes/camvid.yaml"
CROP_PX = 321
SCALES = (0.5, 2.0)
DEGREES = 10.0
HALF = 0.5
IGNORE = 255
BAR = 2.0


class Pair(NamedTuple):
    image: str
    mask: str


class Look(NamedTuple):
    """How crops are normalized, and the color that fills the area outside the image."""

    mean: NDArray[np.float32]  # on a scale of 0 to 255
    std: NDArray[np.float32]
    fill: tuple[int, int, int]


Sample = tuple[torch.Tensor, torch.Tensor]  # (3, H, W) float32, (H, W) int64
Finish = Callable[[NDArray, NDArray, Look], Sample]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--turns", type=int, default=9, help="passes over all training images; the median is reported")
    arguments = parser.parse_args()
    os.environ["PSPNET_TRACKING"] = "off"
    torch.set_num_threads(1)
    print(f"{processor()}, one core, OpenCV {cv2.__version__}\n")
    with tempfile.TemporaryDirectory() as folder:
        compare(arguments.data, arguments.turns, Path(folder))


def compare(data: Path, turns: int, folder: Path) -> None:
    params = load_params(RECIPE)
    prepare.run(
        params.dataset, params.prepare, raw=data, out=folder / "prepared", checkpoints=folder / "state",
        run=StageRun(), tick=lambda *_: None,
    )  # fmt: skip
    dataset = PreparedDataset.open(folder / "prepared")
    index = dataset.annotated("train")
    preprocessing = Preprocessing(dataset.mean, dataset.std)
    augmentation = Augmentation(
        height_px=CROP_PX, width_px=CROP_PX, scale_min=SCALES[0], scale_max=SCALES[1], rotation_degrees=DEGREES,
        flip_probability=HALF, blur_probability=HALF, color_jitter=0.0, fill=preprocessing.mean_color, ignore=IGNORE,
    )  # fmt: skip
    crops = TrainingCrops(dataset.reader(), index, augmentation, seed=0)
    masks = {sample.image: sample.mask.path for sample in take_inventory(params.dataset, params.prepare, data).samples}
    pairs = [Pair(str(data / source), str(data / masks[source])) for source in index["source"]]
    mean, std = (255 * np.array(figures, np.float32) for figures in (dataset.mean, dataset.std))
    around = Look(mean, std, preprocessing.mean_color)

    def ours(turn: int) -> None:
        for position in range(len(crops)):
            crops[turn, position]

    def ours_normalized(turn: int) -> None:
        for position in range(len(crops)):
            sample = crops[turn, position]
            normalized(sample["image"].numpy(), sample["mask"].numpy(), around)

    works = {
        "ours: uint8, normalized on the device": ours,
        "ours, normalized too": ours_normalized,
        "straightforward OpenCV": each(partial(straightforward, finish=normalized_in_numpy), pairs, around),
        "the same, normalized as ours": each(partial(straightforward, finish=normalized), pairs, around),
        "competent OpenCV": each(competent, pairs, around),
    }
    seconds = interleaved(list(works.values()), turns)
    print("| pipeline | ms a sample | samples/s/core | times as long as ours | normalized too |\n|---|--:|--:|--:|--:|")
    for name, own in zip(works, seconds, strict=True):
        print(f"| {name} | {1000 * own / len(pairs):.2f} | {len(pairs) / own:,.0f} | {own / seconds[0]:.2f} | "
              f"{own / seconds[1]:.2f} |")  # fmt: skip
    met = "met" if seconds[2] / seconds[1] >= BAR else "NOT met"
    print(f"\n{len(pairs)} images, {turns} turns. Bar of {BAR:.0f} times the speed of straightforward OpenCV: {met}.")


def interleaved(works: Sequence[Callable[[int], None]], turns: int) -> list[float]:
    seconds: list[list[float]] = [[] for _ in works]
    for turn in range(-1, turns):  # the extra turn is a warm-up
        for own, work in zip(seconds, works, strict=True):
            started = time.process_time()
            work(turn + 1)
            if turn >= 0:
                own.append(time.process_time() - started)
    return [statistics.median(own) for own in seconds]


def each(pipeline: Callable[[Pair, Look], Sample], pairs: list[Pair], around: Look) -> Callable[[int], None]:
    def work(turn: int) -> None:
        random.seed(turn)
        for pair in pairs:
            pipeline(pair, around)

    return work


def straightforward(pair: Pair, around: Look, finish: Finish) -> Sample:
    """Augment the whole image step by step in float32, as tutorials and published training code do."""
    image = cv2.cvtColor(cv2.imread(pair.image, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB).astype(np.float32)
    mask = cv2.imread(pair.mask, cv2.IMREAD_GRAYSCALE)
    image, mask = scaled_and_turned(image, mask, around)
    if random.random() < HALF:
        image = cv2.GaussianBlur(image, (5, 5), 0)
    if random.random() < HALF:
        image, mask = cv2.flip(image, 1), cv2.flip(mask, 1)
    image, mask = cropped(image, mask, around)
    return finish(image, mask, around)


def competent(pair: Pair, around: Look) -> Sample:
    """Do the same as `straightforward`, but work in bytes as long as possible and crop as soon as possible."""
    image = cv2.imread(pair.image, cv2.IMREAD_COLOR_RGB)
    mask = cv2.imread(pair.mask, cv2.IMREAD_GRAYSCALE)
    image, mask = cropped(*scaled_and_turned(image, mask, around), around)
    if random.random() < HALF:
        image = cv2.GaussianBlur(image, (5, 5), 0)
    if random.random() < HALF:
        image, mask = cv2.flip(image, 1), cv2.flip(mask, 1)
    return normalized(image, mask, around)


def normalized(image: NDArray, mask: NDArray, around: Look) -> Sample:
    """Return tensors for a network and a loss. One pass per channel goes from bytes or floats straight to the channel's
    plane.
    """
    planes = np.empty((3, *mask.shape), np.float32)
    for source, plane, mean, std in zip(cv2.split(image), planes, around.mean, around.std, strict=True):
        cv2.addWeighted(source, 1 / std, source, 0, -mean / std, plane, cv2.CV_32F)
    return torch.from_numpy(planes), torch.from_numpy(np.ascontiguousarray(mask)).long()


def normalized_in_numpy(image: NDArray, mask: NDArray, around: Look) -> Sample:
    image = (image - around.mean) / around.std
    return torch.from_numpy(image.transpose(2, 0, 1).copy()), torch.from_numpy(mask.copy()).long()


def scaled_and_turned(image: NDArray, mask: NDArray, around: Look) -> tuple[NDArray, NDArray]:
    factor = random.uniform(*SCALES)
    image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    mask = cv2.resize(mask, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
    if random.random() < HALF:
        height, width = mask.shape
        turn = cv2.getRotationMatrix2D((width / 2, height / 2), random.uniform(-DEGREES, DEGREES), 1)
        image = cv2.warpAffine(image, turn, (width, height), flags=cv2.INTER_LINEAR, borderValue=around.fill)
        mask = cv2.warpAffine(mask, turn, (width, height), flags=cv2.INTER_NEAREST, borderValue=IGNORE)
    return image, mask


def cropped(image: NDArray, mask: NDArray, around: Look) -> tuple[NDArray, NDArray]:
    missing = [max(0, CROP_PX - side) for side in mask.shape]
    if any(missing):
        (top, left), (bottom, right) = ([side // 2 for side in missing], [-(-side // 2) for side in missing])
        image = cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=around.fill)
        mask = cv2.copyMakeBorder(mask, top, bottom, left, right, cv2.BORDER_CONSTANT, value=IGNORE)
    top, left = (random.randint(0, side - CROP_PX) for side in mask.shape)
    window = slice(top, top + CROP_PX), slice(left, left + CROP_PX)
    return image[window], mask[window]


if __name__ == "__main__":
    main()
