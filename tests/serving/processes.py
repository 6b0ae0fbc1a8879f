"""Servers as real processes, and the requests that clients send to them."""

import http.client
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from pspnet.dataset.store.pixels import decode_mask
from pspnet.model.bundle import Bundle
from tests.parameters import ROOT
from tests.predicting import predictor
from tests.waiting import wait_until

BIN = Path(sys.executable).parent
SERVER = ROOT / "pspnet/serving/server.py"
URL = "/invocations"
Process = subprocess.Popen[bytes]


class Response(NamedTuple):
    status: int
    headers: dict[str, str]
    text: str

    @property
    def content(self) -> Any:
        return json.loads(self.text)

    @property
    def message(self) -> str:
        return str(self.content["message"])

    def mask(self, row: int = 0) -> NDArray[np.uint8]:
        assert self.status == 200, self.text
        return decode_mask(b64decode(self.content["predictions"][row]["mask"]))


def environment(**settings: str) -> dict[str, str]:
    """Return an environment with one thread, no MLflow variables, and this Python's programs first on the path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true", **settings}


@contextmanager
def process(command: Sequence[object], folder: Path, **settings: str) -> Iterator[Process]:
    """Start a process that logs to `folder`/log; at the end, kill it and everything it has started."""
    with (folder / "log").open("wb") as log:
        started = subprocess.Popen(
            list(map(str, command)),
            cwd=folder,
            env=environment(**settings),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield started
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
        assert started.stdin
        started.stdin.close()
        started.wait(10)


@contextmanager
def server(python: str, version: Path, folder: Path, *options: str, **settings: str) -> Iterator[tuple[Process, int]]:
    """Start our server on a free port; yield as soon as it answers."""
    with process([python, "-P", SERVER, *options_for(version), *options], folder, **settings) as started:
        yield started, port_of(started, folder)


def without_code(version: Path, folder: Path) -> Path:
    """Return a copy of the version without its bundled code. A process that uses this checkout's pspnet can load the
    copy.
    """
    shutil.copytree(version, folder, ignore=shutil.ignore_patterns("code"))
    content = yaml.safe_load((folder / "MLmodel").read_text())
    del content["flavors"]["python_function"]["code"]
    (folder / "MLmodel").write_text(yaml.safe_dump(content))
    return folder


def options_for(version: Path) -> list[object]:
    return ["--model", version, "--title", "models:/x/3", "--port", "0"]


def port_of(started: Process, folder: Path) -> int:
    def told() -> str:
        text = (folder / "log").read_text()
        assert started.poll() is None, text
        return text if "stops it\n" in text else ""

    text = wait_until(told, otherwise=(folder / "log").read_text)
    return int(text.partition("http://127.0.0.1:")[2].partition(",")[0])


def wait_for_ping(started: Process, port: int, folder: Path) -> None:
    def answers() -> bool:
        assert started.poll() is None, (folder / "log").read_text()
        try:
            return get(port, "/ping").status == 200
        except ConnectionError:
            return False

    wait_until(answers, otherwise=(folder / "log").read_text)


def get(port: int, path: str) -> Response:
    return _request(port, "GET", path, None, {})


def post(
    port: int, content: Any, kind: str | None = "application/json", headers: dict[str, str] | None = None
) -> Response:
    """Post bytes or an iterator of bytes unchanged, and anything else as JSON."""
    body = content if isinstance(content, bytes | Iterator) else json.dumps(content).encode()
    return _request(port, "POST", URL, body, {**({"content-type": kind} if kind else {}), **(headers or {})})


def _request(
    port: int, method: str, path: str, body: bytes | Iterable[bytes] | None, headers: dict[str, str]
) -> Response:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return Response(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read().decode())
    finally:
        connection.close()


def split(*images: Any) -> dict[str, Any]:
    """Return a request for these images; bytes become base64."""
    return {"dataframe_split": {"columns": ["image"], "data": [[text(image)] for image in images]}}


def text(image: Any) -> Any:
    return b64encode(image).decode() if isinstance(image, bytes) else image


def predicted(bundle: Path, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the bundle's mask as computed by this checkout's code and params.yaml."""
    model = Bundle.load(bundle)
    torch.set_num_threads(1)
    [prediction] = predictor(model).predict(image[None])
    assert len(np.unique(prediction.mask)) > 1
    return prediction.mask


def png_of_zeros(width: int, height: int, data: bytes | None = None) -> bytes:
    """Return a black PNG with 1 bit per pixel; `data` replaces the pixels."""
    if data is None:
        data = bytes((width + 7) // 8 + 1) * height
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = {b"IHDR": header, b"IDAT": zlib.compress(data, 9), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts.items()
    )
