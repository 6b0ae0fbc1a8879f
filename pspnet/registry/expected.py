"""What a bundle predicts, kept in its version: whoever loads that version, anywhere and later, must get the same."""

import hashlib
import json
from base64 import b64decode, b64encode
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pspnet.config.params import Params
from pspnet.dataset.images import decode_mask
from pspnet.errors import Problem, UserError
from pspnet.outputs import whole_file
from pspnet.packaging import settings
from pspnet.registry.provenance import installed
from pspnet.registry.versions import part
from pspnet.served import served

IMAGES = 4
TOLERATED_SHARE = 0.001  # of pixels: another kind of processor rounds differently, and two classes may be level


def write_expected(bundle: Path, params: Params, images: Sequence[bytes], folder: Path) -> None:
    from pspnet.serving.service import Service  # loads torch

    folder.mkdir(parents=True)
    table = pd.DataFrame({"image": [b64encode(image).decode() for image in images]})
    masks = Service(bundle, settings(params)).answer(table)["mask"]
    for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
        (folder / f"{number}.image").write_bytes(image)
        (folder / f"{number}.png").write_bytes(b64decode(mask))


def difference(folder: Path) -> str | None:
    """How a version, in its own process, differs from what its bundle predicted at first; None: it does not.

    Asked once for each environment: neither the version nor the packages change by themselves.
    """
    memory = folder.parent / "answered.json"
    if memory.exists():
        said = json.loads(memory.read_text(encoding="utf-8"))
        if said["environment"] == _environment():
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
    except RuntimeError as error:  # no verdict: it may be the memory of this machine, or a package that is missing
        first, *words = str(error).splitlines()
        raise UserError(Problem(str(folder), f"cannot be asked ({first})"), "\n".join(words)) from None
    for number, (wanted, answer) in enumerate(zip(masks, answers, strict=True), start=1):
        if wanted.shape != answer.mask.shape:
            return f"image {number} has a mask of {answer.mask.shape}, not {wanted.shape}"
        if (share := float(np.mean(wanted != answer.mask))) > TOLERATED_SHARE:
            return f"{share:.1%} of the pixels of image {number} differ"
    return None


def _environment() -> str:
    return hashlib.sha256(json.dumps(dict(installed()), sort_keys=True).encode()).hexdigest()
