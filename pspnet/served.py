"""A version is asked in a process of its own, where its own code answers, whatever is in use here.

Quickly imported: that process is started first, and loads torch and MLflow while this one loads what it needs itself.
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
from pspnet.offline import SWITCHES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pspnet.prediction import Prediction

WORKER = Path(__file__).parent / "serving/worker.py"
LOAD_SECONDS = 300
SECONDS_PER_IMAGE = 600  # a large image, a large network, a small CPU
END_SECONDS = 10
TOLD_LINES = 15  # of what a worker that failed has written


@dataclass(frozen=True, eq=False)
class ServedPrediction:
    mask: "NDArray[np.uint8]"  # (H, W) class indices
    confidence: float
    shares: dict[str, float]


Ask = Callable[[list[bytes]], list[ServedPrediction]]


@dataclass(frozen=True)
class ServedPredictor:
    """To `evaluation.measure`, a version that is asked is what a Predictor is."""

    ask: Ask

    def predict(self, images: "NDArray[np.uint8]") -> "list[Prediction]":
        import numpy as np

        from pspnet.dataset.images import encode_image
        from pspnet.prediction import Prediction  # loads torch

        answers = self.ask([encode_image(image) for image in images])
        return [
            Prediction(answer.mask, np.broadcast_to(np.float32(answer.confidence), answer.mask.shape))
            for answer in answers
        ]


@contextmanager
def served(model_folder: Path) -> Iterator[Ask]:
    """Images as encoded files, of any number and size, go in; what the version makes of them comes out."""
    if not (model_folder / "MLmodel").is_file():
        raise UserError(Problem(str(model_folder), "holds no MLmodel", "the folder of a registered version"))
    with _worker() as (worker, log):
        folder = json.dumps({"folder": str(model_folder.resolve())})
        ready = _answer(worker, LOAD_SECONDS, log, f"{model_folder}: the version cannot be loaded", folder)
        if not Path(ready["code"] or "/").is_relative_to(model_folder.resolve()):
            raise RuntimeError(f"{model_folder}: answers with the code of {ready['code']}, not with its own")

        def ask(images: list[bytes]) -> list[ServedPrediction]:
            question = json.dumps({"images": [b64encode(image).decode() for image in images]})
            what = f"{model_folder}: no answer about {len(images)} images"
            answer = _answer(worker, SECONDS_PER_IMAGE * max(1, len(images)), log, what, question)
            if "error" in answer:
                raise UserError(Problem(str(model_folder), answer["error"]))
            return [_prediction(row) for row in answer["rows"]]

        yield ask


# What a version's own code finds in its environment. All else stays here: it may be a credential.
_KEPT = frozenset(
    ("COLUMNS", "FORCE_COLOR", "HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "LINES", "LOGNAME", "NO_COLOR", "PATH",
     "PYTHONFAULTHANDLER", "PYTHONHASHSEED", "PYTHONUNBUFFERED", "PYTHONWARNINGS", "TEMP", "TERM", "TMP", "TMPDIR",
     "TZ", "USER", "MLFLOW_PYFUNC_INFERENCE_CONFIG", "MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", *SWITCHES)
)  # fmt: skip
_KEPT_KINDS = ("LC_", "CUDA_", "CUBLAS_", "CUDNN_", "GOMP_", "KMP_", "MKL_", "NCCL_", "NVIDIA_", "OMP_", "OPENBLAS_",
               "OPENCV_", "PYTORCH_", "TORCH_", "TORCHINDUCTOR_", "COVERAGE_")  # fmt: skip


def own_code_environment() -> dict[str, str]:
    """Ours, without credentials and without what would put another pspnet before the version's own."""
    kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith(_KEPT_KINDS)}
    # The folder of a version is not ours to write byte code into.
    fixed = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**SWITCHES, **kept, **fixed}


Worker = tuple["subprocess.Popen[str]", IO[bytes]]  # and what it logs
Result = Callable[[], Any]  # waits for it
Call = Callable[[str, float, dict[str, Any]], Result]  # a function as "module.name", its seconds, its arguments

_warm: list[tuple[Worker, Result]] = []


@contextmanager
def warm_process() -> Iterator[Call]:
    """The process for the version that is asked next, started before there is one: it loads torch and MLflow meanwhile.

    First a child of it calls a function of the pspnet that is in use here. Arguments and result travel as JSON.
    """
    worker, log = _started()

    def call(function: str, seconds: float, arguments: dict[str, Any]) -> Result:
        assert worker.stdin
        question = {"call": function, "arguments": arguments, "path": sys.path}
        with suppress(BrokenPipeError):  # it has ended; the result says why
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
    """The warm process, once its child has answered."""
    worker, result = _warm.pop()
    with suppress(UserError):  # about what nobody has waited for
        result()
    return worker


def _end(worker: "subprocess.Popen[str]", log: IO[bytes]) -> None:
    worker.kill()
    worker.wait(END_SECONDS)
    log.close()
    for pipe in (worker.stdin, worker.stdout):
        if pipe:
            with suppress(BrokenPipeError):  # of what is left in the buffer
                pipe.close()


def _started() -> Worker:
    environment = own_code_environment()
    environment.pop("MLFLOW_PYFUNC_INFERENCE_CONFIG", None)  # a person's settings for a server: not what is measured
    log = tempfile.TemporaryFile()  # noqa: SIM115  closed with its worker
    command = [sys.executable, "-P", str(WORKER)]
    worker = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, encoding="utf-8"
    )
    return worker, log


def _answer(
    worker: subprocess.Popen[str], seconds: float, log: IO[bytes], failure: str, question: str | None = None
) -> Any:
    """One line out, one line in. Whatever blocks too long is ended by ending the worker."""
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
    reason = f"none within {seconds:,.0f} s" if late.is_set() else f"it ended with {worker.wait(END_SECONDS)}"
    log.seek(0)
    said = log.read().decode(errors="replace").splitlines()[-TOLD_LINES:]
    raise RuntimeError("\n".join([f"{failure} ({reason}). Its last words:", *said]))


def _prediction(row: dict[str, Any]) -> ServedPrediction:
    from pspnet.dataset.images import decode_mask

    mask = decode_mask(b64decode(row["mask"]))
    return ServedPrediction(mask, row["confidence"], row["shares"])
