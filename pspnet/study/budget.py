"""How long a run will take, judged by those that are finished, and whether it still fits."""

import statistics
import time
from dataclasses import dataclass

import pandas as pd

from pspnet.study.grid import Run

START_SECONDS = 10  # imports, the loader, the last messages


@dataclass(frozen=True)
class Budget:
    ends: float  # on the monotonic clock

    @classmethod
    def of(cls, hours: float) -> "Budget":
        return cls(time.monotonic() + 3600 * hours)

    def fits(self, seconds: float | None) -> bool:
        """Whether it ends in time. A run of unknown length fits as long as there is time: it is the first."""
        return time.monotonic() + (seconds or 0.0) < self.ends


def expected_seconds(run: Run, rows: pd.DataFrame, needs_backbone: bool) -> float | None:
    """Estimate from runs of the same arm, or from all by their compute. Return None before the first has finished."""
    known = rows.dropna(subset=["seconds"]) if len(rows) else rows
    if known.empty:
        return None
    same = known[(known["arm"] == run.arm.name) & (known["steps"] == run.steps)]
    pretraining = run.pretraining.flops if run.pretraining else 0.0
    if len(same):
        training = float(same["seconds"].median())
        backbone = float(same["pretraining_seconds"].median())
    else:
        paces = (known["seconds"] / (known["flops"] - known["pretraining_flops"])).tolist()
        pace = statistics.median(paces)
        training, backbone = pace * (run.flops - pretraining), pace * pretraining
    return START_SECONDS + training + (backbone if needs_backbone else 0.0) + float(known["test_seconds"].median())
