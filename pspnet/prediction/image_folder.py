"""Predicts a folder of images with one or more bundles. Writes masks, overlays and a table. Resumes after a kill."""

import hashlib
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from pspnet.config.predict import PredictParams
from pspnet.config.prepare import PrepareParams
from pspnet.config.runtime import RuntimeParams
from pspnet.dataset.store.pixels import decode_image
from pspnet.errors import Problem, UserError
from pspnet.machine.outputs import LONGEST_NAME
from pspnet.model.backbone.digest import digest
from pspnet.model.bundle import Bundle
from pspnet.model.device import configure
from pspnet.prediction import submission
from pspnet.prediction.image.predictor import Member, Predictor
from pspnet.prediction.image.protocol import PredictionProtocol
from pspnet.prediction.output_folder import MASKS, PredictionFolder, Stamp, has_room, opened
from pspnet.printable import UNPRINTABLE
from pspnet.raw.files import read_file
from pspnet.raw.images import Refused, read_image
from pspnet.raw.validation import max_bytes

SUBMISSION = "submission"  # name of a folder inside the predictions folder


def predict_folder(
    prepare: PrepareParams,
    predict: PredictParams,
    runtime: RuntimeParams,
    *,
    images: Path,
    bundles: Sequence[Path],
    out: Path,
    layout: str | None,
    tick: Callable[[int, int, str], None],
) -> list[Problem]:
    """Predict the images. Returns a Problem for each unreadable image. `layout`: also write this benchmark's files."""
    files, refused = list_images(images, out)
    models = _of_one_kind(bundles)
    classes = models[0].classes
    submitted = submission.mask_names(layout, files, classes, bundles[0]) if layout else {}
    device = configure(runtime)
    members = [Member(model.network.to(device), model.preprocessing) for model in models]
    predictor = Predictor(members, PredictionProtocol(**predict.model_dump()), device, runtime.precision)
    digests = [digest(bundle) for bundle in bundles]
    settings = {"bundles": digests, "precision": runtime.precision, **predict.model_dump()}
    max_pixels = round(prepare.max_megapixels * 1e6)
    with opened(out, images, settings, classes, models[0].colors) as folder:
        refused += predict_images(folder, images, files, predictor, max_pixels, tick)
        folder.finish()
        if layout:
            names = {image: submitted[image] for image in folder.finished}
            submission.write(layout, out / MASKS, names, classes, out / SUBMISSION)
    return refused


def _of_one_kind(bundles: Sequence[Path]) -> list[Bundle]:
    """Load the bundles. They must have the same classes, because probabilities are averaged class by class."""
    models = [Bundle.load(bundle) for bundle in bundles]
    for bundle, model in zip(bundles, models, strict=True):
        if model.classes != models[0].classes:
            found = f"has the classes {', '.join(model.classes)}"
            raise UserError(Problem(str(bundle), found, f"those of {bundles[0]}: {', '.join(models[0].classes)}"))
    return models


def list_images(images: Path, out: Path) -> tuple[dict[str, Stamp], list[Problem]]:
    """The files in the folder by name, and a Problem for each name that cannot be used."""
    if not images.is_dir():
        raise UserError(Problem(str(images), "is not a folder", fix="Give the folder of images."))
    if out.resolve().is_relative_to(images.resolve()):
        found = "is in the image folder, where its masks would be treated as images"
        raise UserError(Problem(str(out), found, fix="Give another folder with --out."))
    if images.resolve().is_relative_to(out.resolve()):
        raise UserError(Problem(str(images), "is in the output folder", fix="Give another folder with --out."))
    files, refused = {}, []
    for parent, _, names in os.walk(images, onerror=_unlisted):
        below = Path(parent).relative_to(images).as_posix()
        prefix = "" if below == "." else f"{below}/"
        for name in names:
            path = f"{parent}/{name}"
            if name.startswith(".") or (stamp := _stamp(path)) is None:
                continue
            if UNPRINTABLE.search(prefix + name):
                found = "has a name with control characters or invalid UTF-8"
                refused.append(Problem(path, found, "text", "Rename it."))
                continue
            files[prefix + name] = stamp
    # An empty folder may be an unmounted disk, so earlier predictions must not be removed.
    if not files and not refused:
        raise UserError(Problem(str(images), "contains no files"))
    return files, sorted(refused, key=str)


def _stamp(path: str) -> Stamp | None:
    """The file's size and time, or None if it is not a file."""
    try:
        status = os.stat(path)  # noqa: PTH116 (for a million files, creating Paths would take longer than stat)
    except FileNotFoundError:  # the file is a broken link, or was just removed
        return None
    except OSError as error:
        _unlisted(error)
    return Stamp(status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def _unlisted(error: OSError) -> NoReturn:
    """Raise an error, because images in a folder that cannot be listed would count as removed."""
    raise UserError(Problem(str(error.filename), f"cannot be listed ({error.strerror})", "a readable folder"))


def predict_images(
    folder: PredictionFolder,
    images: Path,
    files: Mapping[str, Stamp],
    predictor: Predictor,
    max_pixels: int,
    tick: Callable[[int, int, str], None],
) -> list[Problem]:
    """Predict the files that are not in `folder` yet. Returns a Problem for each image that cannot be read."""
    refused = []
    unfinished = folder.unfinished(files)
    finished = len(files) - len(unfinished)
    if finished:
        tick(finished, len(files), "images")
    for done, name in enumerate(unfinished, start=finished + 1):
        try:
            if not has_room(name):
                expected = f"at most {LONGEST_NAME - len('.png')}, as its mask is called NAME.png"
                raise Refused(f"has a name of {len(os.fsencode(Path(name).name))} bytes", expected, "Rename it.")
            data = read_file(images / name, max_bytes(max_pixels))
            sha256 = hashlib.sha256(data).hexdigest()
            if not folder.is_finished(name, sha256, files[name]):
                image = decode_image(read_image(data, max_pixels).data)
                [prediction] = predictor.predict(image[None])
                folder.add(name, sha256, files[name], image, prediction)
        except Refused as error:  # tried again in every run: perhaps only a permission is missing
            folder.refuse(name)
            refused.append(Problem(str(images / name), error.found, error.expected, error.fix))
        except MemoryError:
            folder.refuse(name)
            refused.append(Problem(str(images / name), "needs more memory than there is", fix="Cut it into tiles."))
        tick(done, len(files), "images")
    return refused
