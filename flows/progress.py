"""What a stage says of its progress, as an artifact that moves while it runs."""

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from flows.markdown import escaped

# `finetune: 1,200/4,800, 35/s, 103 s left, epoch 3/12, loss 0.412, val mIoU 0.61`: a line of pspnet.terminal
LINE = re.compile(
    r"(?P<stage>[\w-]+): (?P<done>[\d,]+)/(?P<total>[\d,]+), "
    r"(?:(?P<rate>[\d,]+)/s, (?P<left>[\d,]+) s left, )?(?P<note>.*)"
)
BETWEEN_SECONDS = 5.0


@dataclass(frozen=True)
class Said:
    percent: float
    text: str


def parsed(stage: str, line: str) -> Said | None:
    found = LINE.fullmatch(line)
    if found is None or found["stage"] != stage:
        return None
    done, total = (int(found[name].replace(",", "")) for name in ("done", "total"))
    pace = f"{found['rate']} images/s, {found['left']} s left" if found["rate"] else ""
    return Said(100 * done / total if total else 0.0, ", ".join(filter(None, [found["note"], pace])))


class Progress:
    """Of one attempt. A stage that is cached has none: nobody says or finishes anything."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._artifact: Any = None
        self._updated = 0.0
        self._text = ""

    def read(self, line: str) -> None:
        now = time.monotonic()
        if now - self._updated >= BETWEEN_SECONDS and (said := parsed(self._stage, line)):
            self._updated, self._text = now, escaped(said.text)
            self._show(said.percent)

    def finish(self) -> None:
        """Also of who was too quick to say anything: an attempt before it may have been shown half-way."""
        self._show(100.0)

    def _show(self, percent: float) -> None:
        with harmless():
            if self._artifact is None:
                self._artifact = create_progress_artifact(percent, key("progress", self._stage), self._text)
            else:
                update_progress_artifact(self._artifact, progress=percent, description=self._text)


def key(*words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")


@contextmanager
def harmless() -> Iterator[None]:
    """What is only shown is not worth a failed run: the server may be away for a moment."""
    try:
        yield
    except Exception as error:
        logging.getLogger(__name__).warning("Not shown in Prefect: %s", error)
