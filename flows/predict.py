"""The flow: a folder of images -> masks, overlays and a table, by a registered version with `pspnet predict`."""

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

from flows.attempts import attempt, done
from flows.commands import run
from flows.ending import Trouble, trouble
from flows.markdown import escaped
from flows.progress import Progress, harmless
from flows.stages import EXITS, as_task
from flows.workplace import Workplace

MODEL = re.compile(r"by (.+ version \d+)")  # a line of pspnet.commands.predict
SKIPPED = "skipped "
SKIPPED_SHOWN = 20
PICTURES, PICTURE_PX = 4, 320
LARGEST_PX = 25_000_000  # of an image of which a picture is made


@dataclass
class Said:
    """What the command has said; the rest stands in the table."""

    model: str = "a registered version"
    skipped: int = 0
    reasons: list[str] = field(default_factory=list)

    def read(self, line: str) -> bool:
        """Whether it is worth a line in the log: of images that are skipped there may be very many."""
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
    """`images`, `out`: folders; a relative path begins at the checkout. `model`: champion, challenger or a number."""

    def work(workplace: Workplace, environment: dict[str, str]) -> State[Any]:
        folders = workplace.checkout / images, workplace.checkout / out
        said = done(as_task("predict", _predict, retries=3)(workplace, environment, *folders, model))
        summary = Summary(said, folders[1])
        summary.publish()
        return Completed(message=summary.headline)

    return attempt(work)


def _predict(
    workplace: Workplace, environment: Mapping[str, str], images: Path, out: Path, model: str
) -> Said | Trouble:
    """What an attempt before this one has done is not done again: the folder it writes goes on."""
    exit_file = workplace.folder / EXITS / "predict.json"
    exit_file.unlink(missing_ok=True)
    progress, said, log = Progress("predict"), Said(), get_run_logger()

    def tell(line: str) -> None:
        if said.read(line):
            log.info(line)
        progress.read(line)

    command = ["pspnet", "predict", str(images), "--out", str(out), "--model", model]
    if found := trouble(run(command, workplace.folder, environment, tell), None, exit_file):
        return found
    progress.finish()
    return said


class Summary:
    """What a person sees of it in Prefect."""

    def __init__(self, said: Said, out: Path) -> None:
        self._said, self._out = said, out
        self._path = out / "predictions.parquet"
        # A version from before there was such a table has left another, which is not read here.
        self._table: pa.Table | None = pq.read_table(self._path) if self._path.exists() else None

    @property
    def headline(self) -> str:
        count = "" if self._table is None else f"{self._table.num_rows:,} images "
        skipped = f", {self._said.skipped:,} skipped" if self._said.skipped else ""
        return f"{count}by {self._said.model}{skipped}"

    def publish(self) -> None:
        with harmless():
            create_markdown_artifact("\n\n".join(self._parts()), "predictions", escaped(self.headline))

    def _parts(self) -> Iterator[str]:
        yield f"# {escaped(self.headline)}"
        yield f"Masks, overlays and tables: {escaped(self._out)}"
        if self._table is not None and self._table.num_rows:
            yield f"Mean confidence **{_mean(self._table, 'confidence'):.3f}**"
            shares = [name for name in self._table.column_names if name.startswith("share_")]
            rows = [f"| {escaped(name.removeprefix('share_'))} | {_mean(self._table, name):.2%} |" for name in shares]
            yield "\n".join(["| class | mean share of an image |", "|---|---:|", *rows])
            yield from self._pictures(self._table)
        if self._said.skipped:
            more = self._said.skipped - len(self._said.reasons)
            lines = [*self._said.reasons, *([f"and {more:,} more"] if more else [])]
            yield "\n".join(["Skipped:", "", *(f"    {line}" for line in lines)])

    def _pictures(self, table: pa.Table) -> Iterator[str]:
        """The overlays a person should look at first."""
        pixels = pc.multiply(table["height"].cast(pa.int64()), table["width"].cast(pa.int64()))
        names = table.filter(pc.less_equal(pixels, LARGEST_PX)).sort_by("confidence")["image"]
        pictures = [_picture(self._out / "overlays" / f"{name}.png") for name in names[:PICTURES].to_pylist()]
        if pictures:
            yield "The least certain:"
            yield " ".join(f"![](data:image/jpeg;base64,{picture})" for picture in pictures)


def _mean(table: pa.Table, column: str) -> float:
    return float(pc.mean(table[column]).as_py())


def _picture(path: Path) -> str:
    with Image.open(path) as picture:
        picture.thumbnail((PICTURE_PX, PICTURE_PX))
        file = io.BytesIO()
        picture.save(file, "JPEG")
    return b64encode(file.getvalue()).decode()
