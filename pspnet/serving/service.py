"""Answers a request: turns base64 images into rows, or reports all problems. Independent of MLflow and HTTP."""

import binascii
import io
import re
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pspnet.config.predict import PredictParams
from pspnet.config.reading import validate
from pspnet.config.runtime import RuntimeParams
from pspnet.config.serve import ServeParams
from pspnet.dataset.store.pixels import decode_image
from pspnet.errors import Problem, UserError
from pspnet.model.bundle import Bundle
from pspnet.model.device import configure
from pspnet.prediction.image.predictor import Member, Prediction, Predictor
from pspnet.prediction.image.protocol import PredictionProtocol
from pspnet.prediction.output_folder import palette_image
from pspnet.raw.images import Refused, TooLarge, read_image

COLUMN = "image"
WHITESPACE = b" \t\r\n\f\v"
DATA_URL = re.compile(rb"data:[^,]{0,100},")
EXPECTED = "base64 of an image file"


GivenUp = Callable[[], bool]  # returns True once no one is waiting for the answer anymore


class Abandoned(Exception):
    """Work on the request was stopped early, because no one is waiting for the answer anymore."""


class Service:
    def __init__(self, bundle: Path, settings: Mapping[str, Any]) -> None:
        """`settings`: keys from the sections predict, runtime and serve, all in one flat mapping."""
        predict = validate(PredictParams, _section(PredictParams, settings), "model_config")
        # Any seed works, because nothing here is random. `compile` is off, because only training compiles.
        fixed = {"seed": 0, "compile": False}
        runtime = validate(RuntimeParams, {**_section(RuntimeParams, settings), **fixed}, "model_config")
        self._limits = validate(ServeParams, _section(ServeParams, settings), "model_config")
        model = Bundle.load(bundle)
        device = configure(runtime)
        self._network = model.network.to(device)
        self._predictor = Predictor(
            [Member(self._network, model.preprocessing)],
            PredictionProtocol(**predict.model_dump()),
            device,
            runtime.precision,
        )
        self._classes = model.classes
        self._palette = np.array(model.colors, np.uint8)
        # The probabilities of one large image take gigabytes, so only one is predicted at a time.
        self._one_at_a_time = threading.Lock()

    def answer(self, table: pd.DataFrame, given_up: GivenUp = lambda: False) -> pd.DataFrame:
        """Return a row for each image. A single bad image makes the request fail before any image is predicted.

        `given_up` is called before each image and each window.
        """
        images: list[Callable[[], NDArray[np.uint8]]] = []
        problems = []
        for number, value in enumerate(self._sent(table), start=1):
            _go_on(given_up)
            try:
                images.append(self._checked(value))
            except Refused as error:
                problems.append(Problem(f"image {number}", error.found, error.expected, error.fix))
        if problems:
            raise UserError(problems)
        return pd.DataFrame([self._row(pixels, given_up) for pixels in images])

    def _sent(self, table: pd.DataFrame) -> list[object]:
        if list(table.columns) != [COLUMN]:
            found = "has the columns " + ", ".join(map(repr, table.columns)) if len(table.columns) else "has no column"
            raise UserError(Problem("request", found, f"one column, '{COLUMN}': {EXPECTED} in each row"))
        most = self._limits.max_images
        if len(table) > most:
            expected, fix = f"at most {most:,} (serve.max_images)", "Send them in several requests."
            raise UserError(Problem("request", f"contains {len(table):,} images", expected, fix))
        if table.empty:
            raise UserError(Problem("request", "contains no image", f"from 1 to {most:,}"))
        return list(table[COLUMN])

    def _checked(self, value: object) -> Callable[[], NDArray[np.uint8]]:
        """Check an image and return a function that decodes it later."""
        data = _decoded(value, self._limits.max_image_mb)
        stored = _stored(data, self._limits.max_megapixels)
        if stored is data:
            return partial(decode_image, data)
        # `stored` is an RGB PNG, which can be a hundred times larger than `data`. So it is not kept, but recreated.
        return lambda: decode_image(_stored(data, self._limits.max_megapixels))

    def _row(self, pixels: Callable[[], NDArray[np.uint8]], given_up: GivenUp) -> dict[str, Any]:
        _go_on(given_up)
        image = pixels()
        each_window = self._network.register_forward_pre_hook
        with self._one_at_a_time, each_window(lambda *_: _go_on(given_up)):
            [prediction] = self._predictor.predict(image[None])
        height, width = prediction.mask.shape
        shares = prediction.class_shares(len(self._classes))
        return {
            "mask": self._png(prediction),
            "height": height,
            "width": width,
            "confidence": float(prediction.confidence.mean()),
            "shares": dict(zip(self._classes, shares.tolist(), strict=True)),
        }

    def _png(self, prediction: Prediction) -> str:
        file = io.BytesIO()
        palette_image(prediction.mask, self._palette).save(file, "PNG")
        return b64encode(file.getvalue()).decode()


def _go_on(given_up: GivenUp) -> None:
    if given_up():
        raise Abandoned("The client disconnected, or its time ran out.")


def _stored(data: bytes, max_megapixels: float) -> bytes:
    max_pixels = round(max_megapixels * 1e6)
    try:
        return read_image(data, max_pixels).data
    except TooLarge as error:
        raise TooLarge(error.pixels, max_pixels, "serve.max_megapixels") from None


def _section(section: type[PredictParams | RuntimeParams | ServeParams], settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name in section.model_fields if name in settings}


def _decoded(value: object, max_mb: float) -> bytes:
    if not isinstance(value, str):
        null = bool(pd.api.types.is_scalar(value) and pd.isna(value))
        raise Refused("is null" if null else f"is {type(value).__name__}, not text", EXPECTED)
    try:
        text = value.encode("ascii")
    except UnicodeEncodeError:
        raise _not_base64(value) from None
    # Not done with split() or a regex, which would create millions of strings from "a a a ...".
    text = text.translate(None, WHITESPACE)
    if url := DATA_URL.match(text):
        text = text[url.end() :]
    if (size := len(text) * 3 / 4) > max_mb * 1e6:
        fix = "Send a smaller file or raise serve.max_image_mb."
        raise Refused(f"is {size / 1e6:,.1f} MB", f"at most {max_mb:,.1f} (serve.max_image_mb)", fix)
    try:
        return b64decode(text, validate=True)
    except binascii.Error:
        raise _not_base64(value) from None


def _not_base64(value: str) -> Refused:
    fix = "Encode the bytes of the file, not its name or address."
    return Refused(f"is not base64 (it starts with {value[:20]!r})", EXPECTED, fix)
