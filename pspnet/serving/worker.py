"""Answers for one version over a pipe. Stands alone: what it imports of pspnet is the version's own.

python -P worker.py

First line in: {"folder": "..."}           The line out:  {"ready": true, "code": "..."}
A line in:  {"images": [base64, ...]}      The line out:  {"rows": [...]} or {"error": "..."}
"""

import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Limits are for strangers. Here the version's owner asks, about images that may be of any size.
WITHOUT_LIMITS = {"max_images": 1_000_000, "max_image_mb": 1e6, "max_megapixels": 1e6}


def main() -> None:
    # Whatever prints, in Python or not, must not print between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    questions = _questions()

    # Seconds, in which the version may still be in the making. Nothing of pspnet: that comes with the version.
    import mlflow.pyfunc
    import pandas as pd
    import torch  # noqa: F401

    model = mlflow.pyfunc.load_model(next(questions)["folder"], model_config=WITHOUT_LIMITS)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

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


if __name__ == "__main__":
    main()
