"""Times the confusion matrix per image for masks like CamVid's, on one thread: `pspnet.metrics` versus torchmetrics.

python benchmarks/confusion.py                  300 pairs of 360 x 480, 11 classes, void ignored

All implementations get the same uint8 arrays in turn and must give the same counts; times are medians of CPU time.
Exits with status 1 if the counts differ or if pspnet misses a bar: at least 15 times as fast as torchmetrics by
default, and at least 5 times as fast as torchmetrics without its checks.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pipeline import processor
from torchmetrics.classification import MulticlassConfusionMatrix

from pspnet.metrics import confusion_matrix

HEIGHT, WIDTH, CLASSES, IGNORE = 360, 480, 11, 255
ROUNDS = 7
BARS = {"torchmetrics": 15, "torchmetrics, validate_args=False": 5}

Pixels = NDArray[np.uint8]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    pairs = [pair(number) for number in range(arguments.images)]
    works: dict[str, Callable[[], NDArray[np.int64]]] = {
        "pspnet": lambda: ours(pairs),
        "torchmetrics": lambda: theirs(pairs, validate_args=True),
        "torchmetrics, validate_args=False": lambda: theirs(pairs, validate_args=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    counts = {name: work() for name, work in works.items()}  # this call also warms up
    for _ in range(ROUNDS):
        for name, work in works.items():
            started = time.process_time()
            work()
            seconds[name].append(time.process_time() - started)
    medians = {name: statistics.median(own) for name, own in seconds.items()}
    print(f"{processor()}, one thread, {len(pairs)} pairs of {HEIGHT} x {WIDTH}, {CLASSES} classes\n")
    print("| | CPU ms an image | ratio to pspnet | bar |\n|---|--:|--:|--:|")
    for name, median in medians.items():
        bar = f"{BARS[name]}" if name in BARS else ""
        print(f"| {name} | {1000 * median / len(pairs):.3f} | {median / medians['pspnet']:.1f} | {bar} |")
    same = all(np.array_equal(own, counts["pspnet"]) for own in counts.values())
    print("\nall counts are equal" if same else "\nTHE COUNTS DIFFER")
    return 0 if same and all(medians[name] >= bar * medians["pspnet"] for name, bar in BARS.items()) else 1


def pair(number: int) -> tuple[Pixels, Pixels]:
    """Return a mask with smooth borders, and a prediction that misplaces the borders by a few pixels and has one extra
    region.
    """
    random = np.random.default_rng(number)
    fields = random.random((CLASSES + 1, 6, 8), np.float32)
    mask = np.stack([cv2.resize(field, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC) for field in fields]).argmax(0)
    prediction = np.roll(mask, (3, -4), axis=(0, 1))
    prediction[100:160, 200:300] = random.integers(CLASSES)
    ignored = mask == CLASSES
    mask[ignored] = IGNORE
    return mask.astype(np.uint8), np.minimum(prediction, CLASSES - 1).astype(np.uint8)


def ours(pairs: list[tuple[Pixels, Pixels]]) -> NDArray[np.int64]:
    total = np.zeros((CLASSES, CLASSES), np.int64)
    for mask, prediction in pairs:
        total += confusion_matrix(mask, prediction, CLASSES, IGNORE)
    return total


def theirs(pairs: list[tuple[Pixels, Pixels]], validate_args: bool) -> NDArray[np.int64]:
    metric = MulticlassConfusionMatrix(CLASSES, ignore_index=IGNORE, validate_args=validate_args)
    for mask, prediction in pairs:
        metric.update(torch.from_numpy(prediction), torch.from_numpy(mask))
    counts: NDArray[np.int64] = metric.compute().numpy()
    return counts


if __name__ == "__main__":
    sys.exit(main())
