"""A folder of images and a bundle -> masks, overlays and a table. Goes on where a killed run stopped."""

import hashlib
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from pspnet.config.predict import PredictParams
from pspnet.config.prepare import PrepareParams
from pspnet.config.runtime import RuntimeParams
from pspnet.dataset.images import Refused, decode_image, read_image
from pspnet.dataset.raw import read_file
from pspnet.dataset.validation import max_bytes
from pspnet.errors import Problem, UserError
from pspnet.model.bundle import Bundle
from pspnet.model.weights import digest
from pspnet.prediction import Predictor
from pspnet.predictions import Stamp, opened
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
    files, refused = _files(images, out)
    model = Bundle.load(bundle)
    device = configure(runtime)
    predictor = Predictor(
        model.network.to(device), model.preprocessing, predict.window_px, predict.window_overlap_px, device,
        runtime.precision,
    )  # fmt: skip
    settings = {"bundle": digest(bundle), "precision": runtime.precision, **predict.model_dump()}
    max_pixels = round(prepare.max_megapixels * 1e6)
    with opened(out, images, settings, model.classes, model.colors) as folder:
        unfinished = folder.unfinished(files)
        finished = len(files) - len(unfinished)
        if finished:
            tick(finished, len(files), "images")
        for done, name in enumerate(unfinished, start=finished + 1):
            try:
                data = read_file(images / name, max_bytes(max_pixels))
                sha256 = hashlib.sha256(data).hexdigest()
                if not folder.is_finished(name, sha256, files[name]):
                    image = decode_image(read_image(data, max_pixels).data)
                    [prediction] = predictor.predict(image[None])
                    folder.add(name, sha256, files[name], image, prediction)
            except Refused as error:  # looked at again each time: what it lacks may be a right to read it
                folder.refuse(name)
                refused.append(Problem(str(images / name), error.found, error.expected, error.fix))
            tick(done, len(files), "images")
        folder.finish()
    return refused


def _files(images: Path, out: Path) -> tuple[dict[str, Stamp], list[Problem]]:
    if not images.is_dir():
        raise UserError(Problem(str(images), "is not a folder", fix="Name the folder of the images."))
    if out.resolve().is_relative_to(images.resolve()):
        found = "lies in the folder of the images, where its masks would be taken for images"
        raise UserError(Problem(str(out), found, fix="Give another folder with --out."))
    if images.resolve().is_relative_to(out.resolve()):
        raise UserError(Problem(str(images), "lies in the folder to write", fix="Give another folder with --out."))
    files, refused = {}, []
    for parent, _, names in os.walk(images, onerror=_unlisted):
        below = Path(parent).relative_to(images).as_posix()
        prefix = "" if below == "." else f"{below}/"
        for name in names:
            path = f"{parent}/{name}"
            if name.startswith(".") or (stamp := _stamp(path)) is None:
                continue
            if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", prefix + name):  # the last: bytes that are no UTF-8
                found = "has control characters or no UTF-8 in its name"
                refused.append(Problem(ascii(path), found, "text", "Rename it."))
                continue
            files[prefix + name] = stamp
    # Nor are predictions thrown away for a folder that may only be not mounted today.
    if not files and not refused:
        raise UserError(Problem(str(images), "holds no file"))
    return files, sorted(refused, key=str)


def _stamp(path: str) -> Stamp | None:
    """None of what is no file."""
    try:
        status = os.stat(path)  # noqa: PTH116 (for a million files, making the Paths takes longer than asking)
    except FileNotFoundError:  # a broken link, or removed by now
        return None
    except OSError as error:
        _unlisted(error)
    return Stamp(status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def _unlisted(error: OSError) -> NoReturn:
    """Its images would be taken for removed."""
    raise UserError(Problem(str(error.filename), f"cannot be listed ({error.strerror})", "a folder we may read"))
