"""What the rules need to know about the data: sizes, counts, class shares, how thin objects are, and whether left and
right differ.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pspnet.dataset.store.prepared import PreparedDataset

MASKS_READ = 300  # evenly spaced masks of train; reading more does not change any choice
MAP_CELLS = 8  # the side of the coarse map that shows where classes lie


@dataclass(frozen=True)
class DataFacts:
    """All numbers are for train and unlabeled images. `val_images` is the size of val. The test split is not used."""

    train_masks: int
    val_images: int
    height_px: int  # median
    width_px: int
    class_shares: dict[str, float]  # of the annotated pixels
    thickness_px: dict[str, float]  # median over regions of 4 x the mean distance to the edge (a strip's width)
    # 0 if classes are mirror-symmetric, 1 if no class is ever at both a position and its mirror.
    left_right_differ: float

    @classmethod
    def of(cls, dataset: PreparedDataset) -> Self:
        index = dataset.index()
        train, own = dataset.annotated("train"), index[index["split"].isin(["train", "unlabeled"])]
        regions, map_of_classes = _read_masks(dataset, train)
        pixels = np.array(dataset.class_pixels["train"], np.float64)
        thickness = regions.groupby("class")["thickness_px"].median()
        return cls(
            train_masks=len(train),
            val_images=len(dataset.annotated("val")),
            height_px=int(own["height"].median()),
            width_px=int(own["width"].median()),
            class_shares=dict(zip(dataset.classes, (pixels / pixels.sum()).tolist(), strict=True)),
            thickness_px={dataset.classes[number]: float(pixels) for number, pixels in thickness.items()},
            left_right_differ=_left_right_difference(map_of_classes),
        )


def _read_masks(dataset: PreparedDataset, train: pd.DataFrame) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    """Return a row per connected region, and how often each class is in each cell of a coarse map (K, 8, 8)."""
    reader, count = dataset.reader(), len(dataset.classes)
    chosen = train.iloc[np.unique(np.linspace(0, len(train) - 1, MASKS_READ).astype(int))]
    counts = np.zeros((count, MAP_CELLS, MAP_CELLS))
    rows: list[tuple[int, float]] = []
    for shard, row in chosen[["shard", "row"]].itertuples(index=False):
        mask = reader.mask(shard, row)
        for number in np.unique(mask[mask != dataset.ignore]).tolist():
            of_class = (mask == number).astype(np.uint8)
            counts[number] += _cells(of_class)
            _, labels, stats, _ = cv2.connectedComponentsWithStats(of_class)
            depth = cv2.distanceTransform(of_class, cv2.DIST_L2, 3)
            areas = stats[:, cv2.CC_STAT_AREA]
            depths = np.bincount(labels.ravel(), depth.ravel()) / np.maximum(areas, 1)  # region 0 may be empty
            rows += [(number, 4 * depth_px) for depth_px in depths[1:].tolist()]
    return pd.DataFrame(rows, columns=["class", "thickness_px"]), counts


def _cells(of_class: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Count the pixels of the class in each cell of a coarse map. Small images repeat pixels."""
    height, width = (max(MAP_CELLS, side) for side in of_class.shape)
    pixels = cv2.resize(of_class, (width, height), interpolation=cv2.INTER_NEAREST)
    edges = [np.linspace(0, side, MAP_CELLS + 1).astype(int) for side in (height, width)]
    return np.array([[pixels[a:b, c:d].sum() for c, d in pairwise(edges[1])] for a, b in pairwise(edges[0])], float)


def _left_right_difference(counts: NDArray[np.float64]) -> float:
    """Return half the sum of |a class's share of a cell - its share of the mirrored cell|, averaged over classes."""
    shares = counts / np.maximum(counts.sum(axis=(1, 2), keepdims=True), 1)
    apart = np.abs(shares - shares[:, :, ::-1]).sum(axis=(1, 2)) / 2
    return float(apart[counts.sum(axis=(1, 2)) > 0].mean()) if counts.any() else 0.0
