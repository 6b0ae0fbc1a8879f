"""A folder of predictions: masks, overlays, and a table that grows by a row per image, so that a killed run goes on."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from pspnet.errors import Problem, UserError
from pspnet.outputs import whole_file
from pspnet.prediction import Prediction

Color = tuple[int, int, int]


class PredictionFolder:
    def __init__(
        self, folder: Path, settings: dict[str, Any], classes: tuple[str, ...], colors: tuple[Color, ...]
    ) -> None:
        self._folder, self._classes = folder, classes
        self._palette = np.array(colors, np.uint8)
        self.table = folder / "predictions.csv"
        _claim(folder, settings)
        self.finished = self._finished()  # image -> digest of the file that was predicted
        self._columns = ["image", "sha256", "height", "width", "confidence", *(f"share_{name}" for name in classes)]
        with self.table.open("a", newline="", encoding="utf-8") as file:
            if file.tell() == 0:
                csv.writer(file, lineterminator="\n").writerow(self._columns)

    def add(self, name: str, sha256: str, image: NDArray[np.uint8], prediction: Prediction) -> None:
        """The row comes last: an image is finished when it stands in the table."""
        _save(palette_image(prediction.mask, self._palette), self._folder / "masks" / f"{name}.png")
        colored = Image.fromarray(self._palette[prediction.mask])
        _save(Image.blend(Image.fromarray(image), colored, 0.5), self._folder / "overlays" / f"{name}.png")
        row = {"image": name, "sha256": sha256, **self._figures(prediction)}
        with self.table.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns, lineterminator="\n").writerow(row)

    def close(self) -> None:
        """Of an image that has changed since, only the row of its last prediction stays."""
        table = _read(self.table)
        newest = table.drop_duplicates("image", keep="last")
        if len(newest) < len(table):
            with whole_file(self.table) as partial:
                newest.to_csv(partial, index=False)

    def _figures(self, prediction: Prediction) -> dict[str, Any]:
        height, width = prediction.mask.shape
        shares = np.bincount(prediction.mask.ravel(), minlength=len(self._classes)) / prediction.mask.size
        return {
            "height": height,
            "width": width,
            "confidence": f"{prediction.confidence.mean():.4f}",
            **{f"share_{name}": f"{share:.6f}" for name, share in zip(self._classes, shares, strict=True)},
        }

    def _finished(self) -> dict[str, str]:
        """From the rows so far; one that a kill cut short is removed from the file."""
        if not self.table.exists():
            return {}
        data = self.table.read_bytes()
        whole_lines = data[: data.rfind(b"\n") + 1]
        if whole_lines != data:
            with whole_file(self.table) as partial:
                partial.write_bytes(whole_lines)
        if not whole_lines:
            return {}
        rows = _read(self.table)
        return dict(zip(rows["image"], rows["sha256"], strict=True))


def palette_image(mask: NDArray[np.uint8], palette: NDArray[np.uint8]) -> Image.Image:
    """Programs read class indices from it, people see colours. `palette` is (K, 3)."""
    indexed = Image.fromarray(mask)
    # For up to 16 colours Pillow writes less than 8 bits a pixel, which not every reader takes for indices.
    indexed.putpalette([*palette.ravel().tolist(), *[0] * 3 * max(0, 17 - len(palette))])
    return indexed


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Masks of two models in one folder could not be told apart."""
    path = folder / "settings.json"
    fix = "Give another folder with --out, or remove this one."
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != settings:
        raise UserError(Problem(str(folder), "holds predictions of another model or other params", fix=fix))
    if not path.exists() and folder.exists() and any(folder.iterdir()):
        raise UserError(Problem(str(folder), "is not empty and holds no predictions", fix=fix))
    with whole_file(path) as partial:
        partial.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)  # an image may be called NA


def _save(picture: Image.Image, path: Path) -> None:
    with whole_file(path) as partial:
        picture.save(partial, format="PNG")
