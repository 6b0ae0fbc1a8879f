"""Fuzzes the body of a request to `pspnet serve`, with its server, MLflow's app and a small network in this process."""

import asyncio
import json
import logging
import tempfile
import warnings
from base64 import b64encode
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from pspnet.serving.server import FORMATS, Bounded, Message
from tests.fuzz._edits import edited, edits
from tests.parameters import demo_params
from tests.raw.rawdata import encoded, noise
from tests.serving.conftest import make_bundle
from tests.serving.processes import png_of_zeros, without_code

HEADERS = [(b"content-type", b"application/json")]
# These limits are small so that an input with a few large images stays within the fuzzer's limits. The process uses 750
# MB before the first input, an image of 1 megapixel needs 220 MB, and torch keeps some memory for each new size.
LIMITS = demo_params(serve__max_images=4, serve__max_image_mb=1.0, serve__max_megapixels=0.25)
EXPECTED = (200, 400, 413, 415)


def one(data: bytes, folder: Path) -> None:
    """Send one request in two parts. The answer is rows or a rejection in short JSON."""
    status, answer = _loop().run(_ask(data))
    content = json.loads(answer)
    assert status in EXPECTED, f"{status}: {content}"
    if status == 200:
        assert content["predictions"], content
    else:
        assert set(content) == {"error_code", "message"}, content
        assert content["message"], content
        assert len(answer) < 30_000


async def _ask(data: bytes) -> tuple[int, bytes]:
    parts = [data[: len(data) // 2], data[len(data) // 2 :]]
    messages: list[Message] = [
        {"type": "http.request", "body": part, "more_body": number == 0} for number, part in enumerate(parts)
    ]
    answer: list[Message] = []

    async def receive() -> Message:
        return messages.pop(0) if messages else await asyncio.Future()

    async def send(message: Message) -> None:
        answer.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "method": "POST",
        "path": "/invocations", "raw_path": b"/invocations", "root_path": "", "query_string": b"",
        "headers": HEADERS, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
    }  # fmt: skip
    await Bounded(_app(), 8_000_000, 1, 1)(scope, receive, send)
    return answer[0]["status"], answer[1]["body"]


@cache
def _loop() -> asyncio.Runner:
    """Use one runner for all inputs, as the server does, because a runner keeps its threads and torch's memory for each
    thread.
    """
    return asyncio.Runner()


@cache
def _app() -> Any:
    import mlflow.pyfunc
    from mlflow.pyfunc import scoring_server

    from pspnet.registry.packaging import save_version

    logging.disable(logging.CRITICAL)  # otherwise MLflow would log every rejection
    # MLflow's code causes warnings.
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings(action="ignore"):
        bundle, version, own = (Path(temporary, name) for name in ("bundle", "version", "own"))
        bundle.mkdir()
        make_bundle(bundle)
        save_version(bundle, LIMITS, {}, version)
        return scoring_server.init(mlflow.pyfunc.load_model(str(without_code(version, own))))


def _images() -> dict[str, bytes]:
    color, gray = Image.fromarray(noise(24, 40)), Image.fromarray(noise(24, 40)[..., 0])
    modes = {mode: color.convert(mode) for mode in ("RGB", "RGBA", "P", "CMYK", "1", "L", "LA", "YCbCr", "F", "I")}
    modes["I;16"] = Image.fromarray(np.arange(960, dtype=np.uint16).reshape(24, 40) * 60)
    images = {}
    for kind in ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP"):
        for mode, image in modes.items():
            with suppress(OSError, ValueError):  # some formats support only some modes
                images[f"{kind} {mode}"] = encoded(image, kind)
    images["JPEG turned"] = encoded(color, "JPEG", orientation=6)
    images["JPEG progressive"] = encoded(color, "JPEG", progressive=True)
    for compression in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits"):
        images[f"TIFF {compression}"] = encoded(color, "TIFF", compression=compression)
    images["TIFF of two"] = encoded(color, "TIFF", save_all=True, append_images=[gray])
    images["GIF of two"] = encoded(color, "GIF", save_all=True, append_images=[gray])
    images["PNG of zeros"] = png_of_zeros(500, 500)
    images["PNG too large"] = png_of_zeros(5000, 5000)
    images["PNG that claims much"] = png_of_zeros(60_000, 60_000, data=b"")
    return images


few_edits = st.lists(edits, max_size=3)
IMAGES = _images()
images = st.builds(edited, st.sampled_from(sorted(IMAGES)).map(IMAGES.__getitem__), few_edits)
base64s = st.builds(edited, images.map(b64encode), st.one_of(st.just([]), few_edits)).map(
    lambda data: data.decode("latin-1")
)
data_urls = base64s.map("data:image/png;base64,{}".format)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), base64s),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)),
    max_leaves=8,
)
cells = st.one_of(base64s, data_urls, values)
columns = st.lists(st.one_of(st.just("image"), st.text(max_size=5)), min_size=1, max_size=2) | st.just(["image"])
rows = st.lists(st.lists(cells, min_size=1, max_size=1), max_size=5)
requests = st.one_of(
    st.fixed_dictionaries({"dataframe_split": st.fixed_dictionaries({"columns": columns, "data": rows})}),
    st.fixed_dictionaries({"dataframe_records": st.lists(st.fixed_dictionaries({"image": cells}), max_size=5)}),
    st.fixed_dictionaries({"inputs": st.lists(cells, max_size=5) | st.fixed_dictionaries({"image": cells})}),
    st.fixed_dictionaries({"instances": st.lists(cells, max_size=5)}),
    st.fixed_dictionaries({"dataframe_split": values}, optional={"params": values, "more": values}),
    st.dictionaries(st.sampled_from([*FORMATS, "params"]), values, max_size=2),
)
written = requests.map(lambda request: json.dumps(request).encode())
nested = st.builds(
    lambda brackets, times: b"".join(bracket * times for bracket in brackets),
    st.lists(st.sampled_from([b"[", b"]", b'{"a":', b"}", b"-", b"1", b'"', b"\\u", b"e9"]), max_size=4),
    st.integers(0, 100_000),
)
INPUTS = st.one_of(written, st.builds(edited, written, few_edits), values.map(json.dumps).map(str.encode), nested,
                   st.binary(max_size=200))  # fmt: skip
