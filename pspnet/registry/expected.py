"""A version includes its bundle's predictions, to check that the version predicts the same wherever it is loaded."""

import hashlib
import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pspnet.dataset.annotated import AnnotatedImages
from pspnet.dataset.store.pixels import decode_mask, encode_image
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.errors import Problem, UserError
from pspnet.machine.outputs import whole_file
from pspnet.registry.provenance import installed
from pspnet.registry.versions import part
from pspnet.serving.client import LOAD_SECONDS, SECONDS_PER_IMAGE, Call, served

IMAGES = 4
TOLERATED_SHARE = 0.001  # of the pixels; processors round differently, which can decide between equally likely classes


Examples = list[tuple[str, str]]  # pairs of an image, as a client would send it, and its mask; both as base64


def examples(bundle: str, prepared: str, settings: Mapping[str, Any]) -> Examples:
    """Return images with the masks that the bundle predicts with a version's settings. All values are valid in JSON."""
    from pspnet.serving.service import Service  # loads torch

    images = [b64encode(image).decode() for image in _images(Path(prepared), settings)]
    masks = Service(Path(bundle), settings).answer(pd.DataFrame({"image": images}))["mask"]
    return list(zip(images, masks, strict=True))


def examples_later(
    call: Call | None, bundle: Path, prepared: Path, settings: Mapping[str, Any]
) -> Callable[[], Examples]:
    """Return a function that returns the examples.

    If `call` is given, another process starts to compute them now; otherwise the returned function computes them.
    """
    arguments: dict[str, Any] = {"bundle": str(bundle), "prepared": str(prepared), "settings": settings}
    if call is None:
        return partial(examples, **arguments)
    return call(f"{__name__}.{examples.__name__}", LOAD_SECONDS + SECONDS_PER_IMAGE * IMAGES, arguments)


def _images(prepared: Path, settings: Mapping[str, Any]) -> Iterator[bytes]:
    """Yield test images as a client would send them, or a random image if there are no test images."""
    sent = 0
    if (prepared / "dataset.json").exists():
        dataset = PreparedDataset.open(prepared)
        samples = AnnotatedImages(dataset.reader(), dataset.annotated("test").head(IMAGES))
        for sample in samples:
            data = encode_image(sample.image)
            if len(data) <= settings["max_image_mb"] * 1e6 and sample.mask.size <= settings["max_megapixels"] * 1e6:
                sent += 1
                yield data
    if not sent:
        yield encode_image(np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8))


def write_expected(found: Examples, folder: Path) -> None:
    folder.mkdir(parents=True)
    for number, (image, mask) in enumerate(found):
        (folder / f"{number}.image").write_bytes(b64decode(image))
        (folder / f"{number}.png").write_bytes(b64decode(mask))


def difference(folder: Path) -> str | None:
    """Run a version in a separate process. Return how its predictions differ from its bundle's, or None if they agree.

    Each environment is checked only once, because neither the version nor the packages change on their own.
    """
    memory = folder.parent / "answered.json"
    if memory.exists():
        remembered = json.loads(memory.read_text(encoding="utf-8"))
        if remembered["environment"] == _environment():
            return None
    found = _ask(folder)
    if found is None:
        with whole_file(memory) as partial:
            partial.write_text(json.dumps({"environment": _environment()}) + "\n", encoding="utf-8")
    return found


def _ask(folder: Path) -> str | None:
    expected = part(folder, "expected")
    images = [path.read_bytes() for path in sorted(expected.glob("*.image"))]
    masks = [decode_mask(path.read_bytes()) for path in sorted(expected.glob("*.png"))]
    try:
        with served(folder) as ask:
            answers = ask(images)
    except RuntimeError as error:  # not the version's fault: this machine may lack memory or a package
        first, *words = str(error).splitlines()
        raise UserError(Problem(str(folder), f"cannot be run ({first})"), "\n".join(words)) from None
    for number, (wanted, answer) in enumerate(zip(masks, answers, strict=True), start=1):
        if wanted.shape != answer.mask.shape:
            return f"image {number} has a mask of shape {answer.mask.shape}, not {wanted.shape}"
        if (share := float(np.mean(wanted != answer.mask))) > TOLERATED_SHARE:
            return f"{share:.1%} of the pixels in image {number} differ"
    return None


def _environment() -> str:
    return hashlib.sha256(json.dumps(dict(installed()), sort_keys=True).encode()).hexdigest()
