"""Answers for one version over a pipe. Stands alone: what it imports of pspnet is the version's own.

python -P worker.py

First line in: {"folder": "..."}           The line out:  {"ready": true, "code": "..."}
A line in:  {"images": [base64, ...]}      The line out:  {"rows": [...]} or {"error": "..."}

Before the first line there may be another, which a child of this process answers, with the pspnet of who asks:
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

# Limits are for strangers. Here the version's owner asks, about images that may be of any size.
WITHOUT_LIMITS = {"max_images": 1_000_000, "max_image_mb": 1e6, "max_megapixels": 1e6}


def main() -> None:
    # Whatever prints, in Python or not, must not print between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    questions = _questions()

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    # Seconds, in which the version may still be in the making. Nothing of pspnet: that comes with the version.
    gc.disable()  # nearly half of the time
    import cv2  # noqa: F401
    import pandas as pd
    import pydantic  # noqa: F401
    import safetensors.torch  # noqa: F401

    first = next(questions)
    if "call" in first:
        _in_a_child(first, say)
    import mlflow.pyfunc

    gc.freeze()
    gc.enable()
    version = next(questions) if "call" in first else first
    # Without warnings: to compare the packages, MLflow looks at each of their files.
    model = mlflow.pyfunc.load_model(version["folder"], suppress_warnings=True, model_config=WITHOUT_LIMITS)
    code = getattr(sys.modules.get("pspnet"), "__file__", None)
    say({"ready": True, "code": code and str(Path(code).parent)})
    for question in questions:
        try:
            table = model.predict(pd.DataFrame({"image": question["images"]}))
            say({"rows": table.to_dict("records")})
        except Exception as error:
            traceback.print_exc()
            say({"error": str(error)})


def _questions() -> Iterator[dict[str, Any]]:
    """Read beside the work, so that the end of the input, which is the end of who asks, ends this process at once."""
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield json.loads(lines.get())


def _in_a_child(question: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> None:
    """Have a child answer. A process may be forked that has loaded torch and computed nothing yet."""
    parent = os.getpid()
    if child := os.fork():
        threading.Thread(target=_end_with, args=(child,), daemon=True).start()
        return
    try:
        sys.path[:] = question["path"]
        from pspnet.errors import UserError
        from pspnet.process import die_with_parent

        die_with_parent(signal.SIGKILL, parent)
        module, _, name = question["call"].rpartition(".")
        try:
            say({"returned": getattr(import_module(module), name)(**question["arguments"])})
        except UserError as error:
            say({"error": str(error)})
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _end_with(child: int) -> None:
    """As the child ends, if that is not well: who asks then reads no answer."""
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0:
        os.kill(os.getpid(), -status)
    elif status:
        os._exit(status)


if __name__ == "__main__":
    main()
