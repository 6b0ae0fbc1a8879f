"""Which masks a run may use: a prefix of an order that the seed draws, so that fewer masks are always among more."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def labeling_order(annotated: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Sort the rows as their images would be labeled: one from each group in turn, spread over the group."""
    rows = annotated.sort_values("id", ignore_index=True)
    rng = np.random.default_rng([seed, len(rows)])
    turns = np.zeros(len(rows), np.int64)
    places = np.zeros(len(rows), np.int64)  # of the row's group among the groups
    groups = list(rows.groupby("group", sort=True).indices.values())
    for place, own in zip(rng.permutation(len(groups)), groups, strict=True):
        turns[own] = _spread(len(own), rng)
        places[own] = place
    return rows.iloc[np.lexsort((places, turns))]


def _spread(count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the turn of each of `count` neighbors. First turns lie far apart, as in a rotated van der Corput sequence.

    Neighboring frames of a video show nearly the same.
    """
    bits = max(1, (count - 1).bit_length())
    offset = int(rng.integers(2**bits))
    reversed_bits = [int(f"{(place + offset) % 2**bits:0{bits}b}"[::-1], 2) for place in range(count)]
    return np.argsort(np.argsort(reversed_bits))


def filling(rows: pd.DataFrame, batch_size: int) -> pd.DataFrame:
    """Repeat the rows if they would not fill a batch."""
    return pd.concat([rows] * -(-batch_size // len(rows)))
