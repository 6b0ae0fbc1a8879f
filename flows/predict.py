"""The flow that runs a registered version on a folder of images and writes masks, overlays and a table."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.command import run
from flows.failure import Failure, failure_of
from flows.flow_attempt import attempt, result_of
from flows.markdown import escaped
from flows.pictures import data_url
from flows.progress import Progress, harmless
from flows.tasks import as_task
from flows.workplace import Workplace

SKIPPED_SHOWN = 20
PICTURES, PICTURE_PX = 4, 320
LARGEST_PX = 25_000_000  # images with more pixels are not shown


@dataclass(frozen=True)
class Told:
    """What the command reported. All other facts are in the table of predictions."""

    model: str
    skipped: tuple[str, ...] = ()  # for each skipped image, its problem


@flow(name="predict", persist_result=False)
def predict(images: str, out: str, model: str = "champion") -> State[Any]:
    """Predict masks for a folder of images.

    `images`, `out`: folders, absolute or relative to the checkout. `model`: champion, challenger or a version number.
    """

    def work(workplace: Workplace, environment: dict[str, str]) -> State[Any]:
        folders = workplace.checkout / images, workplace.checkout / out
        told = result_of(as_task("predict", _predict, retries=3)(workplace, environment, *folders, model))
        summary = PredictionSummary(told, folders[1])
        summary.publish()
        return Completed(message=summary.headline)

    return attempt(work)


def _predict(
    workplace: Workplace, environment: Mapping[str, str], images: Path, out: Path, model: str
) -> Told | Failure:
    """Run `pspnet predict`. If an earlier attempt has already filled part of the output folder, predicting resumes."""
    progress = Progress("predict")
    command = ["pspnet", "predict", str(images), "--out", str(out), "--model", model]
    ended = run(command, workplace.folder, environment, get_run_logger().info, on_progress=progress.show)
    if failure := failure_of(ended, None):
        return failure
    progress.finish()
    model = ended.result.get("model", "a registered version")
    return Told(model, tuple(event["problem"] for event in ended.told("skipped")))


class PredictionSummary:
    """Shows the predictions as an artifact in the Prefect UI."""

    def __init__(self, told: Told, out: Path) -> None:
        self._told, self._out = told, out
        self._path = out / "predictions.parquet"
        # Old model versions write a different table, which is not read here.
        self._table: pa.Table | None = pq.read_table(self._path) if self._path.exists() else None

    @property
    def headline(self) -> str:
        count = "" if self._table is None else f"{self._table.num_rows:,} images "
        skipped = f", {len(self._told.skipped):,} skipped" if self._told.skipped else ""
        return f"{count}by {self._told.model}{skipped}"

    def publish(self) -> None:
        with harmless():
            create_markdown_artifact("\n\n".join(self._paragraphs()), "predictions", escaped(self.headline))

    def _paragraphs(self) -> Iterator[str]:
        yield f"# {escaped(self.headline)}"
        yield f"Masks, overlays and tables: {escaped(self._out)}"
        if self._table is not None and self._table.num_rows:
            yield f"Mean confidence **{_mean(self._table, 'confidence'):.3f}**"
            shares = [name for name in self._table.column_names if name.startswith("share_")]
            rows = [f"| {escaped(name.removeprefix('share_'))} | {_mean(self._table, name):.2%} |" for name in shares]
            yield "\n".join(["| class | mean share of an image |", "|---|---:|", *rows])
            yield from self._pictures(self._table)
        if skipped := self._told.skipped:
            more = len(skipped[SKIPPED_SHOWN:])
            lines = [*skipped[:SKIPPED_SHOWN], *([f"and {more:,} more"] if more else [])]
            yield "\n".join(["Skipped:", "", *(f"    {line}" for line in lines)])

    def _pictures(self, table: pa.Table) -> Iterator[str]:
        """The overlays of the images with the lowest confidence, which are worth checking first."""
        pixels = pc.multiply(table["height"].cast(pa.int64()), table["width"].cast(pa.int64()))
        names = table.filter(pc.less_equal(pixels, LARGEST_PX)).sort_by("confidence")["image"]
        overlays = [self._out / "overlays" / f"{name}.png" for name in names[:PICTURES].to_pylist()]
        if overlays:
            yield "Least certain:"
            yield " ".join(f"![]({data_url(overlay, PICTURE_PX)})" for overlay in overlays)


def _mean(table: pa.Table, column: str) -> float:
    return float(pc.mean(table[column]).as_py())
