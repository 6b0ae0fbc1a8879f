"""Answers requests for one version over a pipe. At first, nothing is imported from pspnet, because the version includes
its own pspnet.

python -P worker.py

line in                                    line out
{"folder": "..."}                          {"ready": true, "code": "..."}
{"images": [base64, ...]}, repeatedly      {"rows": [...]} or {"error": "..."}

Before that, a child of this process can answer one line, using the calling process's pspnet:
{"call": "module.function", "arguments": {...}, "path": [...]}     {"returned": ...} or {"error": "..."}
"""

import gc
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

# The limits are meant for outside requests. The requests here come from the version's owner, with images of any size.
WITHOUT_LIMITS = {"max_images": 1_000_000, "max_image_mb": 1e6, "max_megapixels": 1e6}


def main() -> None:
    # Neither Python nor native code may print between answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    questions = _questions()

    def send(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    # These imports take seconds, and the version may not exist yet. pspnet is not among them: the version includes it.
    gc.disable()  # saves nearly half of the import time
    import cv2  # noqa: F401
    import pandas as pd
    import pydantic  # noqa: F401
    import safetensors.torch  # noqa: F401

    first = next(questions)
    if "call" in first:
        _in_a_child(first, send)
    import mlflow.pyfunc

    gc.freeze()
    gc.enable()
    version = next(questions) if "call" in first else first
    # Without warnings: to issue them, MLflow would read every file of the installed packages.
    model = mlflow.pyfunc.load_model(version["folder"], suppress_warnings=True, model_config=WITHOUT_LIMITS)
    code = getattr(sys.modules.get("pspnet"), "__file__", None)
    send({"ready": True, "code": code and str(Path(code).parent)})
    for question in questions:
        try:
            table = model.predict(pd.DataFrame({"image": question["images"]}))
            send({"rows": table.to_dict("records")})
        except Exception as error:
            traceback.print_exc()
            send({"error": str(error)})


def _questions() -> Iterator[dict[str, Any]]:
    """Yield the questions. A thread reads them, so that this process exits as soon as the calling process does."""
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield json.loads(lines.get())


def _in_a_child(question: dict[str, Any], send: Callable[[dict[str, Any]], None]) -> None:
    """Answer a question in a child process. Forking is safe: torch is loaded, but has not computed anything yet."""
    parent = os.getpid()
    if child := os.fork():
        threading.Thread(target=_end_with, args=(child,), daemon=True).start()
        return
    try:
        sys.path[:] = question["path"]
        from pspnet.errors import UserError
        from pspnet.machine.process import die_with_parent

        die_with_parent(signal.SIGKILL, parent)
        module, _, name = question["call"].rpartition(".")
        try:
            send({"returned": getattr(import_module(module), name)(**question["arguments"])})
        except UserError as error:
            send({"error": str(error)})
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _end_with(child: int) -> None:
    """If the child failed, exit the same way it did. The calling process then receives no answer."""
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0:
        os.kill(os.getpid(), -status)
    elif status:
        os._exit(status)


if __name__ == "__main__":
    main()
