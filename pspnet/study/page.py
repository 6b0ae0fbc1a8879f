"""The page of a study: the sentence, curves over masks and steps, and a table of paired differences."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined

from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.study.arms import SCRATCH
from pspnet.study.comparing import STILL_GAINS, Chapter, Mean
from pspnet.study.sentence import score, signed

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 560, 280, 44, 30, 12  # of a chart, px
LABEL_PX = 40  # room for a label below a chart
TICKS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
MOST_TICKS = 6


@dataclass(frozen=True)
class Study:
    sentence: str
    chapters: Sequence[Chapter]
    rows: pd.DataFrame
    runs: int  # planned
    dataset: PreparedDataset


def page(study: Study) -> str:
    """Return the page as HTML that loads no other files."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"score": score, "signed": signed}
    template = environment.from_string(Path(__file__).with_name("study.html.j2").read_text(encoding="utf-8"))
    return template.render(
        study=study,
        charts=[chart for chart in (_by_masks(study.chapters), _by_steps(study.rows)) if chart],
        axes=[_axis(chapter) for chapter in study.chapters],
        comparisons=sum(len(chapter.comparisons) for chapter in study.chapters),
        still_gains=STILL_GAINS,
    )


def _by_masks(chapters: Sequence[Chapter]) -> dict[str, Any] | None:
    """Draw mIoU over the number of masks, a line for each arm, for the largest number of steps."""
    lines: dict[str, list[tuple[float, Mean]]] = {}
    for chapter in chapters:
        if chapter.steps == chapters[0].steps:
            lines.setdefault(SCRATCH, []).append((chapter.masks, chapter.scratch))
            for one in chapter.comparisons:
                lines.setdefault(one.arm, []).append((chapter.masks, one.mean_iou))
    return _chart(f"Test mIoU by masks, {chapters[0].steps:,} steps", lines) if chapters else None


def _by_steps(rows: pd.DataFrame) -> dict[str, Any] | None:
    """Draw mIoU of scratch over the number of steps, a line for each number of masks."""
    if rows.empty:
        return None
    scratch = rows[rows["arm"] == SCRATCH]
    lines = {
        f"{masks:,} masks": [
            (float(steps), Mean.of(own["test_mean_iou"].tolist())) for steps, own in of_masks.groupby("steps")
        ]
        for masks, of_masks in scratch.groupby("masks")
    }
    return _chart("Test mIoU of scratch by steps", lines)


def _chart(title: str, lines: dict[str, list[tuple[float, Mean]]]) -> dict[str, Any]:
    """Place the points, on a logarithmic axis from left to right."""
    points = [point for line in lines.values() for point in line]
    across = sorted({at for at, _ in points})
    values = [value for _, mean in points for value in (mean.value, *(mean.interval or ()))]
    ticks = _ticks(max(0.0, min(values)), min(1.0, max(values)))
    left, right = math.log(across[0]), math.log(across[-1])

    def x(at: float) -> float:
        share = (math.log(at) - left) / (right - left) if right > left else 0.5
        return round(LEFT + 12 + share * (WIDTH - LEFT - 24), 1)

    def y(value: float) -> float:
        share = (min(ticks[-1], max(ticks[0], value)) - ticks[0]) / (ticks[-1] - ticks[0])
        return round(HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP), 1)

    return {
        "title": title,
        "across": _apart([(x(at), f"{at:,.0f}") for at in across]),
        "up": [(y(tick), f"{tick:g}") for tick in ticks],
        "lines": [
            (name, [(x(at), y(m.value), [y(end) for end in m.interval or ()]) for at, m in line])
            for name, line in lines.items()
        ],
    }


def _apart(labels: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """Keep the labels that leave each other room. The largest number always has one."""
    kept: list[tuple[float, str]] = []
    for place, text in reversed(labels):
        if not kept or kept[-1][0] - place >= LABEL_PX:
            kept.append((place, text))
    return kept


def _ticks(low: float, high: float) -> list[float]:
    step = next((step for step in TICKS if (high - low) / step < MOST_TICKS), TICKS[-1])
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 4) for number in range(first, max(first + 1, last) + 1)]


def _axis(chapter: Chapter) -> float:
    """Return the largest gain or loss to draw, in mIoU. Wider intervals are cut off."""
    gains = [abs(one.gain.value) for one in chapter.comparisons]
    ends = [abs(end) for one in chapter.comparisons for end in one.gain.interval or ()]
    return min(max([*gains, *ends, 0.01]), max([*(2 * gain for gain in gains), 0.1]))
