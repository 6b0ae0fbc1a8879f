"""A folder of images and a bundle -> masks, overlays and a table. Goes on where a killed run stopped."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from pspnet.config.predict import PredictParams
from pspnet.config.prepare import PrepareParams
from pspnet.config.runtime import RuntimeParams
from pspnet.dataset.images import Refused, decode_image, read_image
from pspnet.dataset.validation import read_file
from pspnet.errors import Problem, UserError
from pspnet.model.bundle import Bundle
from pspnet.model.weights import digest
from pspnet.prediction import Predictor
from pspnet.predictions import PredictionFolder
from pspnet.training.runtime import configure


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
    files = _files(images, out)
    model = Bundle.load(bundle)
    device = configure(runtime)
    predictor = Predictor(
        model.network.to(device), model.preprocessing, predict.window_px, predict.window_overlap_px, device,
        runtime.precision,
    )  # fmt: skip
    settings = {"bundle": digest(bundle), "precision": runtime.precision, **predict.model_dump()}
    folder = PredictionFolder(out, settings, model.classes, model.colors)
    max_pixels = round(prepare.max_megapixels * 1e6)
    refused = []
    for done, path in enumerate(files, start=1):
        name = path.relative_to(images).as_posix()
        try:
            data = read_file(path, max_pixels)
            sha256 = hashlib.sha256(data).hexdigest()
            if folder.finished.get(name) != sha256:
                image = decode_image(read_image(data, max_pixels).data)
                [prediction] = predictor.predict(image[None])
                folder.add(name, sha256, image, prediction)
        except Refused as error:
            refused.append(Problem(str(path), error.found, error.expected, error.fix))
        tick(done, len(files), "images")
    folder.close()
    return refused


def _files(images: Path, out: Path) -> list[Path]:
    if not images.is_dir():
        raise UserError(Problem(str(images), "is not a folder", fix="Name the folder of the images."))
    if out.resolve().is_relative_to(images.resolve()):
        found = "lies in the folder of the images, where its masks would be taken for images"
        raise UserError(Problem(str(out), found, fix="Give another folder with --out."))
    files = sorted(path for path in images.rglob("*") if path.is_file() and not path.name.startswith("."))
    if not files:
        raise UserError(Problem(str(images), "holds no file"))
    return files
