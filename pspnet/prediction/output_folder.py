"""A folder of predictions that mirrors a folder of images. After a kill, the next run resumes in the same folder.

settings.json         the images, model and params; a folder without this file was not written by us
masks/ overlays/      IMAGE.png for each image
predictions.parquet   a row for each image, sorted by name; written last
.digests.parquet      digest, size and time of each image file when it was read; unchanged files are not read again
.rows.jsonl           during a run: the rows that are not in the table yet
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from pspnet.errors import Problem, UserError
from pspnet.machine.outputs import LONGEST_NAME, partial_of, whole_file
from pspnet.machine.process import exclusive
from pspnet.prediction.image.predictor import Prediction

FORMAT_VERSION = 3
TABLE, DIGESTS, ROWS = "predictions.parquet", ".digests.parquet", ".rows.jsonl"
SETTINGS, LOCK = "settings.json", ".lock"
MASKS = "masks"
PICTURES = (MASKS, "overlays")
STRIP_ROWS = 256  # number of rows of an overlay to compute at once

Color = tuple[int, int, int]


class Stamp(NamedTuple):
    """The size and time of a file. If both are unchanged, the file need not be read again."""

    size_bytes: int
    mtime_ns: int


class PredictionFolder:
    """The predictions in a folder: the table, plus rows left by an interrupted run. The last row of each image counts.

    A row without figures marks the image's pictures as possibly invalid. It is written before any change to them. Only
    pictures of images that have a row are ever removed, because the user may have put other files next to them.
    """

    def __init__(self, folder: Path, classes: tuple[str, ...], colors: tuple[Color, ...]) -> None:
        self._folder = folder
        self._palette = np.array(colors, np.uint8)
        self._shares = [f"share_{name}" for name in classes]
        self._schema = pa.schema(
            [
                ("image", pa.string()), ("sha256", pa.string()), ("height", pa.int32()), ("width", pa.int32()),
                ("confidence", pa.float32()), *((name, pa.float32()) for name in self._shares),
            ]
        )  # fmt: skip
        self._digest_schema = pa.schema(
            [("image", pa.string()), ("sha256", pa.string()), ("size_bytes", pa.int64()), ("mtime_ns", pa.int64())]
        )
        _cut(folder / ROWS)
        table, rows = self._table(), self._rows()
        self._is_current = (folder / TABLE).exists() and not (folder / ROWS).exists()
        self._known = {*table["image"].to_pylist(), *rows["image"].to_pylist()}
        self._finished = _digests(table) | _digests(rows)  # image -> digest of the file that was predicted
        self._seen = _seen(self._read(DIGESTS, self._digest_schema)) | _seen(rows)
        made = set.intersection(*(set(_names(folder / kind)) for kind in PICTURES))
        self._finished = {name: sha256 for name, sha256 in self._finished.items() if sha256 and name in made}

    @property
    def finished(self) -> list[str]:
        return sorted(self._finished)

    def unfinished(self, files: Mapping[str, Stamp]) -> list[str]:
        """The names of images that are new or may have changed, sorted.

        From now on, images that are not in `files` count as removed.
        """
        self._finished = {name: sha256 for name, sha256 in self._finished.items() if name in files}
        as_it_was = {name for name, sha256 in self._finished.items() if self._seen.get(name) == (sha256, *files[name])}
        return sorted(files.keys() - as_it_was)

    def is_finished(self, name: str, sha256: str, stamp: Stamp) -> bool:
        """Whether the file has the same content as the one that was predicted, even if it was touched or copied."""
        if self._finished.get(name) != sha256:
            return False
        self._seen[name] = (sha256, *stamp)
        self._is_current = False
        return True

    def add(self, name: str, sha256: str, stamp: Stamp, image: NDArray[np.uint8], prediction: Prediction) -> None:
        """Write the pictures, then the row with figures, which marks the image as finished."""
        self._note({"image": name})
        masks, overlays = self._pictures(name)
        _save(palette_image(prediction.mask, self._palette), masks)
        _save(self._overlay(image, prediction.mask), overlays)
        self._note({"image": name, "sha256": sha256, **stamp._asdict(), **self._figures(prediction)})
        self._finished[name] = sha256
        self._seen[name] = (sha256, *stamp)

    def refuse(self, name: str) -> None:
        """Forget an image that was predicted before but can no longer be read."""
        self._finished.pop(name, None)

    def finish(self) -> None:
        """Write the table, then remove pictures that are no longer in it, so that readers find a mask for every row."""
        gone = sorted(self._known - self._finished.keys())
        if self._is_current and not gone:
            return
        for name in gone:
            self._note({"image": name})
        self._write(TABLE, self._whole_table())
        for name in gone:
            for path in self._pictures(name) if has_room(name) else ():
                _remove(path)
        self._write(DIGESTS, self._whole_digests())
        (self._folder / ROWS).unlink(missing_ok=True)

    def _overlay(self, image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> Image.Image:
        """The image with its mask blended over it. It is computed in strips: whole arrays could take gigabytes."""
        overlay = np.empty_like(image)
        for top in range(0, len(image), STRIP_ROWS):
            rows = slice(top, top + STRIP_ROWS)
            colored = Image.fromarray(self._palette[mask[rows]])
            overlay[rows] = np.asarray(Image.blend(Image.fromarray(image[rows]), colored, 0.5))
        return Image.fromarray(overlay)

    def _figures(self, prediction: Prediction) -> dict[str, Any]:
        height, width = prediction.mask.shape
        shares = prediction.class_shares(len(self._shares))
        return {
            "height": height,
            "width": width,
            # Rounded as in the table, whose bytes are then the same whether or not a row was read back from a file.
            "confidence": float(np.float32(prediction.confidence.mean())),
            **{name: float(np.float32(share)) for name, share in zip(self._shares, shares, strict=True)},
        }

    def _pictures(self, name: str) -> list[Path]:
        return [self._folder / kind / f"{name}.png" for kind in PICTURES]

    def _note(self, row: dict[str, Any]) -> None:
        with (self._folder / ROWS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._known.add(row["image"])
        self._is_current = False

    def _whole_table(self) -> pa.Table:
        rows = self._rows()
        renewed = set(rows["image"].to_pylist())
        table = _where(self._table(), lambda name: name in self._finished and name not in renewed)
        rows = _where(rows, lambda name: name in self._finished).select(self._schema.names)
        # Combined into one chunk: Parquet starts a page at each chunk, so the bytes would depend on the history.
        return pa.concat_tables([table, rows]).sort_by("image").combine_chunks()

    def _whole_digests(self) -> pa.Table:
        names = sorted(self._finished)
        columns = zip(*(self._seen[name] for name in names), strict=True) if names else ([], [], [])
        return pa.table([names, *map(list, columns)], schema=self._digest_schema)

    def _table(self) -> pa.Table:
        return self._read(TABLE, self._schema)

    def _rows(self) -> pa.Table:
        """The rows of the table, with only the last row of each image."""
        path = self._folder / ROWS
        schema = pa.unify_schemas([self._schema, self._digest_schema])
        if not path.exists() or not path.stat().st_size:
            return schema.empty_table()
        rows = pyarrow.json.read_json(path, parse_options=pyarrow.json.ParseOptions(explicit_schema=schema))
        last = {name: number for number, name in enumerate(rows["image"].to_pylist())}
        return rows.select(schema.names).take(list(last.values()))

    def _read(self, name: str, schema: pa.Schema) -> pa.Table:
        path = self._folder / name
        return pq.read_table(path, schema=schema) if path.exists() else schema.empty_table()

    def _write(self, name: str, table: pa.Table) -> None:
        with whole_file(self._folder / name) as partial:
            pq.write_table(table, partial, compression="zstd")


@contextmanager
def opened(
    folder: Path, images: Path, settings: dict[str, Any], classes: tuple[str, ...], colors: tuple[Color, ...]
) -> Iterator[PredictionFolder]:
    """Lock the folder and open it. A second run fails at once, because it would wait only to do the same work again."""
    # Symlinks are deliberately not resolved: to the user, a link that points to a new folder each day is one folder.
    settings = {"format_version": FORMAT_VERSION, "images": os.path.abspath(images), **settings}  # noqa: PTH100
    _check(folder, settings)
    with exclusive(folder / LOCK, str(folder), seconds=0):
        _check(folder, settings)  # another run may have created it in the meantime
        if not (folder / SETTINGS).exists():
            with whole_file(folder / SETTINGS) as partial:
                partial.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        yield PredictionFolder(folder, classes, colors)


def has_room(name: str) -> bool:
    """Whether a picture can be named after the image without its file name becoming too long."""
    return len(os.fsencode(f"{Path(name).name}.png")) <= LONGEST_NAME


def palette_image(mask: NDArray[np.uint8], palette: NDArray[np.uint8]) -> Image.Image:
    """A mask as a picture that programs read as class indices and people see in color. `palette` is (K, 3)."""
    indexed = Image.fromarray(mask)
    # For up to 16 colors Pillow writes fewer than 8 bits per pixel, which some readers do not read as indices.
    indexed.putpalette([*palette.ravel().tolist(), *[0] * 3 * max(0, 17 - len(palette))])
    return indexed


def _check(folder: Path, settings: dict[str, Any]) -> None:
    """Reject a folder with different settings, because its masks would be mixed with ours or removed."""
    path = folder / SETTINGS
    fix = "Give another folder with --out, or remove this one."
    if folder.exists() and not folder.is_dir():
        raise UserError(Problem(str(folder), "is not a folder", fix=fix))
    if path.exists() and (known := json.loads(path.read_text(encoding="utf-8"))) != settings:
        found = "contains predictions of a different model, with different params or in a different format"
        if known | {"images": settings["images"]} == settings:
            found = f"contains predictions of the images in {known['images']}"
        raise UserError(Problem(str(folder), found, fix=fix))
    first_of_all = {LOCK, f"{SETTINGS}.partial"}  # a run killed during startup can leave these
    if not path.exists() and folder.exists() and any(one.name not in first_of_all for one in folder.iterdir()):
        raise UserError(Problem(str(folder), "is not empty and contains no predictions", fix=fix))


def _cut(path: Path) -> None:
    """Remove an incomplete last line left by a crash."""
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def _digests(rows: pa.Table) -> dict[str, str]:
    return dict(zip(rows["image"].to_pylist(), rows["sha256"].to_pylist(), strict=True))


def _seen(rows: pa.Table) -> dict[str, tuple[str, int, int]]:
    """Image -> digest, size and time. The digest must agree with the table, because the files can be out of sync."""
    columns = [rows[name].to_pylist() for name in ("sha256", "size_bytes", "mtime_ns")]
    return dict(zip(rows["image"].to_pylist(), zip(*columns, strict=True), strict=True))


def _where(table: pa.Table, wanted: Callable[[str], bool]) -> pa.Table:
    return table.filter(pa.array([wanted(name) for name in table["image"].to_pylist()], pa.bool_()))


def _names(folder: Path) -> Iterable[str]:
    """The names of the images that have a picture in the folder."""
    for parent, _, names in os.walk(folder):
        below = Path(parent).relative_to(folder).as_posix()
        prefix = "" if below == "." else f"{below}/"
        yield from (prefix + name.removesuffix(".png") for name in names if name.endswith(".png"))


def _remove(path: Path) -> None:
    """Remove the file, any partial file from a killed run, and folders that become empty."""
    path.unlink(missing_ok=True)
    partial_of(path).unlink(missing_ok=True)
    for parent in path.parents:
        try:
            parent.rmdir()
        except OSError:  # it still contains other files
            return


def _save(picture: Image.Image, path: Path) -> None:
    with whole_file(path) as partial:
        picture.save(partial, format="PNG")
