"""Queries a version in a separate process, which runs the version's own code instead of the pspnet in use here.

This module is quick to import, so that the other process can start early and load torch and MLflow while this one
continues.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pspnet.errors import Problem, UserError
from pspnet.machine.offline import SWITCHES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pspnet.prediction.image.predictor import Prediction

WORKER = Path(__file__).with_name("worker.py")
LOAD_SECONDS = 300
SECONDS_PER_IMAGE = 600  # enough for a large image and a large network on a small CPU
END_SECONDS = 10
LAST_LINES = 15  # number of lines to show from the log of a failed worker


@dataclass(frozen=True, eq=False)
class ServedPrediction:
    mask: "NDArray[np.uint8]"  # (H, W) class indices
    confidence: float
    shares: dict[str, float]


Ask = Callable[[list[bytes]], list[ServedPrediction]]


@dataclass(frozen=True)
class ServedPredictor:
    """Makes a version look like a Predictor, so that `evaluation.measuring` can evaluate it."""

    ask: Ask

    def predict(self, images: "NDArray[np.uint8]") -> "list[Prediction]":
        import numpy as np

        from pspnet.dataset.store.pixels import encode_image
        from pspnet.prediction.image.predictor import Prediction  # loads torch

        answers = self.ask([encode_image(image) for image in images])
        return [
            Prediction(answer.mask, np.broadcast_to(np.float32(answer.confidence), answer.mask.shape))
            for answer in answers
        ]


@contextmanager
def served(model_folder: Path) -> Iterator[Ask]:
    """Yield a function that takes encoded images, of any number and size, and returns the version's predictions."""
    if not (model_folder / "MLmodel").is_file():
        raise UserError(Problem(str(model_folder), "contains no MLmodel", "the folder of a registered version"))
    with _worker() as (worker, log):
        folder = json.dumps({"folder": str(model_folder.resolve())})
        ready = _answer(worker, LOAD_SECONDS, log, f"{model_folder}: the version cannot be loaded", folder)
        if not Path(ready["code"] or "/").is_relative_to(model_folder.resolve()):
            raise RuntimeError(f"{model_folder}: answers with the code in {ready['code']}, not with its own")

        def ask(images: list[bytes]) -> list[ServedPrediction]:
            question = json.dumps({"images": [b64encode(image).decode() for image in images]})
            failure = f"{model_folder}: no answer for {len(images)} image(s)"
            answer = _answer(worker, SECONDS_PER_IMAGE * max(1, len(images)), log, failure, question)
            if "error" in answer:
                raise UserError(Problem(str(model_folder), answer["error"]))
            return [_prediction(row) for row in answer["rows"]]

        yield ask


# The variables that a version's own code may see. Any other variable may be a credential.
_KEPT = frozenset(
    ("COLUMNS", "FORCE_COLOR", "HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "LINES", "LOGNAME", "NO_COLOR", "PATH",
     "PYTHONFAULTHANDLER", "PYTHONHASHSEED", "PYTHONUNBUFFERED", "PYTHONWARNINGS", "TEMP", "TERM", "TMP", "TMPDIR",
     "TZ", "USER", "MLFLOW_PYFUNC_INFERENCE_CONFIG", "MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", *SWITCHES)
)  # fmt: skip
_KEPT_KINDS = ("LC_", "CUDA_", "CUBLAS_", "CUDNN_", "GOMP_", "KMP_", "MKL_", "NCCL_", "NVIDIA_", "OMP_", "OPENBLAS_",
               "OPENCV_", "PYTORCH_", "TORCH_", "TORCHINDUCTOR_", "COVERAGE_")  # fmt: skip


def own_code_environment() -> dict[str, str]:
    """Return this process's environment without credentials, and without paths to any pspnet except the version's."""
    kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith(_KEPT_KINDS)}
    # No bytecode may be written to the version's folder, because the folder is sealed.
    fixed = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**SWITCHES, **kept, **fixed}


Worker = tuple["subprocess.Popen[str]", IO[bytes]]  # the process and its log
Result = Callable[[], Any]  # waits for the result
Call = Callable[[str, float, dict[str, Any]], Result]  # (function as "module.name", seconds, arguments)

_warm: list[tuple[Worker, Result]] = []


@contextmanager
def warm_process() -> Iterator[Call]:
    """Start the process for the next version early, so that it can load torch and MLflow while the version is created.

    Yield a way to call a function of this checkout's pspnet in a child of that process. Arguments and the result are
    passed as JSON.
    """
    worker, log = _started()

    def call(function: str, seconds: float, arguments: dict[str, Any]) -> Result:
        assert worker.stdin
        question = {"call": function, "arguments": arguments, "path": sys.path}
        with suppress(BrokenPipeError):  # the process has ended; `result` reports why
            worker.stdin.write(json.dumps(question) + "\n")
            worker.stdin.flush()

        @cache
        def result() -> Any:
            answer = _answer(worker, seconds, log, f"{function}: no result")
            if "error" in answer:
                raise UserError([], answer["error"])
            return answer["returned"]

        _warm.append(((worker, log), result))
        return result

    try:
        yield call
    finally:
        _warm.clear()
        _end(worker, log)


@contextmanager
def _worker() -> Iterator[Worker]:
    worker, log = _free() if _warm else _started()
    try:
        yield worker, log
    finally:
        _end(worker, log)


def _free() -> Worker:
    """Return the warm process, after waiting for the answer of its child."""
    worker, result = _warm.pop()
    with suppress(UserError):  # this is the error of a call whose result was never requested
        result()
    return worker


def _end(worker: "subprocess.Popen[str]", log: IO[bytes]) -> None:
    worker.kill()
    worker.wait(END_SECONDS)
    log.close()
    for pipe in (worker.stdin, worker.stdout):
        if pipe:
            with suppress(BrokenPipeError):  # the buffer was not empty
                pipe.close()


def _started() -> Worker:
    environment = own_code_environment()
    environment.pop("MLFLOW_PYFUNC_INFERENCE_CONFIG", None)  # these settings are for a server, not for evaluation
    log = tempfile.TemporaryFile()  # noqa: SIM115  closed with its worker
    command = [sys.executable, "-P", str(WORKER)]
    worker = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, encoding="utf-8"
    )
    return worker, log


def _answer(
    worker: subprocess.Popen[str], seconds: float, log: IO[bytes], failure: str, question: str | None = None
) -> Any:
    """Send a question, if there is one, and read the answer. Kill the worker if either takes too long."""
    assert worker.stdin
    assert worker.stdout
    late = threading.Event()

    def give_up() -> None:
        late.set()
        worker.kill()

    timer = threading.Timer(seconds, give_up)
    timer.start()
    line = ""
    try:
        if question is not None:
            worker.stdin.write(question + "\n")
            worker.stdin.flush()
        line = worker.stdout.readline()
    except BrokenPipeError:
        pass
    finally:
        timer.cancel()
    if line.endswith("\n"):
        return json.loads(line)
    reason = f"nothing within {seconds:,.0f} s" if late.is_set() else f"it ended with {worker.wait(END_SECONDS)}"
    log.seek(0)
    lines = log.read().decode(errors="replace").splitlines()[-LAST_LINES:]
    raise RuntimeError("\n".join([f"{failure} ({reason}). Its last lines:", *lines]))


def _prediction(row: dict[str, Any]) -> ServedPrediction:
    from pspnet.dataset.store.pixels import decode_mask

    mask = decode_mask(b64decode(row["mask"]))
    return ServedPrediction(mask, row["confidence"], row["shares"])
