"""A folder of images and a bundle -> masks, overlays and a table. Goes on where a killed run stopped."""

import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from pspnet.config.predict import PredictParams
from pspnet.config.prepare import PrepareParams
from pspnet.config.runtime import RuntimeParams
from pspnet.dataset.images import Refused, decode_image, read_image
from pspnet.errors import Problem, UserError
from pspnet.model.bundle import Bundle, bundle_digest
from pspnet.outputs import whole_file
from pspnet.prediction import Prediction, Predictor
from pspnet.training.runtime import configure

TABLE = "predictions.csv"
SETTINGS = "settings.json"


def run(
    prepare: PrepareParams,
    predict: PredictParams,
    runtime: RuntimeParams,
    *,
    images: Path,
    bundle: Path,
    out: Path,
    tick: Callable[[int, int, str], None],
) -> list[Problem]:
    """Returns the images that could not be read."""
    if not images.is_dir():
        raise UserError(Problem(str(images), "is not a folder", fix="Give the folder of the images with --images."))
    if out.resolve().is_relative_to(images.resolve()):
        found = "lies in the folder of the images, where its masks would be taken for images"
        raise UserError(Problem(str(out), found, fix="Give another folder with --out."))
    files = sorted(path for path in images.rglob("*") if path.is_file() and not path.name.startswith("."))
    if not files:
        raise UserError(Problem(str(images), "holds no file"))
    model = Bundle.load(bundle)
    device = configure(runtime)
    predictor = Predictor(
        model.network.to(device), model.preprocessing, predict.window_px, predict.window_overlap_px, device,
        runtime.precision,
    )  # fmt: skip
    settings = {"bundle": bundle_digest(bundle), "precision": runtime.precision, **predict.model_dump()}
    _claim(out, settings)
    columns = ["image", "sha256", "height", "width", "confidence", *(f"share_{name}" for name in model.classes)]
    finished = _finished(out / TABLE)
    refused = []
    with (out / TABLE).open("a", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        if file.tell() == 0:
            table.writeheader()
        for done, path in enumerate(files, start=1):
            name = path.relative_to(images).as_posix()
            data = path.read_bytes()
            sha256 = hashlib.sha256(data).hexdigest()
            if finished.get(name) != sha256:
                try:
                    image = decode_image(read_image(data, round(prepare.max_megapixels * 1e6)).data)
                except Refused as error:
                    refused.append(Problem(str(path), error.found, error.expected, error.fix))
                else:
                    [prediction] = predictor.predict(image[None])
                    _draw(image, prediction.mask, model, out, name)
                    table.writerow({"image": name, "sha256": sha256, **_figures(prediction, model.classes)})
                    file.flush()
            tick(done, len(files), "images")
    _keep_newest(out / TABLE)
    return refused


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Masks of two models in one folder could not be told apart."""
    path = out / SETTINGS
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != settings:
        raise UserError(Problem(str(out), "holds predictions of another model or other params",
                                fix="Give another folder with --out, or remove this one."))  # fmt: skip
    if not path.exists() and out.exists() and any(out.iterdir()):
        raise UserError(
            Problem(str(out), "is not empty and holds no predictions", fix="Give another folder with --out.")
        )
    with whole_file(path) as partial:
        partial.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _finished(path: Path) -> dict[str, str]:
    """Image -> digest of the rows written so far; a row that a kill cut short is removed from the file."""
    if not path.exists():
        return {}
    data = path.read_bytes()
    whole_lines = data[: data.rfind(b"\n") + 1]
    if whole_lines != data:
        with whole_file(path) as partial:
            partial.write_bytes(whole_lines)
    if not whole_lines:
        return {}
    table = _read(path)
    return dict(zip(table["image"], table["sha256"], strict=True))


def _keep_newest(path: Path) -> None:
    """Of an image that has changed since, only the row of its last prediction stays."""
    table = _read(path)
    newest = table.drop_duplicates("image", keep="last")
    if len(newest) < len(table):
        with whole_file(path) as partial:
            newest.to_csv(partial, index=False)


def _read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)  # an image may be called NA


def _figures(prediction: Prediction, classes: tuple[str, ...]) -> dict[str, Any]:
    height, width = prediction.mask.shape
    shares = np.bincount(prediction.mask.ravel(), minlength=len(classes)) / prediction.mask.size
    return {
        "height": height,
        "width": width,
        "confidence": f"{prediction.confidence.mean():.4f}",
        **{f"share_{name}": f"{share:.6f}" for name, share in zip(classes, shares, strict=True)},
    }


def _draw(image: NDArray[np.uint8], mask: NDArray[np.uint8], model: Bundle, out: Path, name: str) -> None:
    """The mask as a palette PNG of class indices, and the image with the classes' colours laid over it."""
    palette = np.array(model.colors, np.uint8)
    indexed = Image.fromarray(mask)
    indexed.putpalette(palette.ravel().tolist())
    _save(indexed, out / "masks" / f"{name}.png")
    _save(Image.blend(Image.fromarray(image), Image.fromarray(palette[mask]), 0.5), out / "overlays" / f"{name}.png")


def _save(picture: Image.Image, path: Path) -> None:
    with whole_file(path) as partial:
        picture.save(partial, format="PNG")
