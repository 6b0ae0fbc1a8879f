"""The flow: a registered version turns a folder of images into masks, overlays and a table, with `pspnet predict`."""

import io
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image
from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.command import run
from flows.failure import Failure, failure_of
from flows.flow_attempt import attempt, result_of
from flows.markdown import escaped
from flows.progress import Progress, harmless
from flows.tasks import EXITS, as_task
from flows.workplace import Workplace

MODEL = re.compile(r"by (.+ version \d+)")  # a line that pspnet.registry.predicting prints
SKIPPED = "skipped "
SKIPPED_SHOWN = 20
PICTURES, PICTURE_PX = 4, 320
LARGEST_PX = 25_000_000  # larger images are not shown


@dataclass
class PrintedFacts:
    """The facts that the command prints; all others are in the table."""

    model: str = "a registered version"
    skipped: int = 0
    reasons: list[str] = field(default_factory=list)

    def read(self, line: str) -> bool:
        """Take in a line. Returns whether to log it: only the first skipped images are logged."""
        if found := MODEL.fullmatch(line):
            self.model = found[1]
        if not line.startswith(SKIPPED):
            return True
        self.skipped += 1
        if self.skipped <= SKIPPED_SHOWN:
            self.reasons.append(line.removeprefix(SKIPPED))
        return self.skipped <= SKIPPED_SHOWN


@flow(name="predict", persist_result=False)
def predict(images: str, out: str, model: str = "champion") -> State[Any]:
    """`images`, `out`: folders, absolute or relative to the checkout. `model`: champion, challenger or a number."""

    def work(workplace: Workplace, environment: dict[str, str]) -> State[Any]:
        folders = workplace.checkout / images, workplace.checkout / out
        printed = result_of(as_task("predict", _predict, retries=3)(workplace, environment, *folders, model))
        summary = PredictionSummary(printed, folders[1])
        summary.publish()
        return Completed(message=summary.headline)

    return attempt(work)


def _predict(
    workplace: Workplace, environment: Mapping[str, str], images: Path, out: Path, model: str
) -> PrintedFacts | Failure:
    """Run `pspnet predict`. It continues a folder that an earlier attempt began."""
    exit_file = workplace.folder / EXITS / "predict.json"
    exit_file.unlink(missing_ok=True)
    progress, printed, log = Progress("predict"), PrintedFacts(), get_run_logger()

    def on_line(line: str) -> None:
        if printed.read(line):
            log.info(line)
        progress.read(line)

    command = ["pspnet", "predict", str(images), "--out", str(out), "--model", model]
    if failure := failure_of(run(command, workplace.folder, environment, on_line), None, exit_file):
        return failure
    progress.finish()
    return printed


class PredictionSummary:
    """The predictions as an artifact on Prefect's pages."""

    def __init__(self, printed: PrintedFacts, out: Path) -> None:
        self._printed, self._out = printed, out
        self._path = out / "predictions.parquet"
        # Old versions write a different table, which is not read here.
        self._table: pa.Table | None = pq.read_table(self._path) if self._path.exists() else None

    @property
    def headline(self) -> str:
        count = "" if self._table is None else f"{self._table.num_rows:,} images "
        skipped = f", {self._printed.skipped:,} skipped" if self._printed.skipped else ""
        return f"{count}by {self._printed.model}{skipped}"

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
        if self._printed.skipped:
            more = self._printed.skipped - len(self._printed.reasons)
            lines = [*self._printed.reasons, *([f"and {more:,} more"] if more else [])]
            yield "\n".join(["Skipped:", "", *(f"    {line}" for line in lines)])

    def _pictures(self, table: pa.Table) -> Iterator[str]:
        """The overlays with the lowest confidence, which deserve a look first."""
        pixels = pc.multiply(table["height"].cast(pa.int64()), table["width"].cast(pa.int64()))
        names = table.filter(pc.less_equal(pixels, LARGEST_PX)).sort_by("confidence")["image"]
        pictures = [_picture(self._out / "overlays" / f"{name}.png") for name in names[:PICTURES].to_pylist()]
        if pictures:
            yield "Least certain:"
            yield " ".join(f"![](data:image/jpeg;base64,{picture})" for picture in pictures)


def _mean(table: pa.Table, column: str) -> float:
    return float(pc.mean(table[column]).as_py())


def _picture(path: Path) -> str:
    with Image.open(path) as picture:
        picture.thumbnail((PICTURE_PX, PICTURE_PX))
        file = io.BytesIO()
        picture.save(file, "JPEG")
    return b64encode(file.getvalue()).decode()
