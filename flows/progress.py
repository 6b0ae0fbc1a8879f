"""Shows the progress of a stage as a Prefect artifact, which is updated while the stage runs."""

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from flows.markdown import escaped
from pspnet.machine.events import Event

BETWEEN_SECONDS = 5.0


class Progress:
    """The progress of one attempt at a stage. A cached stage reports no progress, so it gets no artifact."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._artifact: Any = None
        self._first: Event | None = None
        self._updated = 0.0
        self._text = ""

    def show(self, event: Event) -> None:
        """Show a progress event from the stage, unless another was shown only moments ago."""
        if event["title"] != self._stage:
            return
        self._first = self._first or event
        now = time.monotonic()
        if now - self._updated >= BETWEEN_SECONDS:
            self._updated = now
            self._text = escaped(", ".join(filter(None, [event["note"], pace(self._first, event)])))
            self._update(100 * event["done"] / event["total"] if event["total"] else 0.0)

    def finish(self) -> None:
        """Show 100%, even if the stage reported no progress: an earlier attempt may have stopped halfway."""
        self._update(100.0)

    def _update(self, percent: float) -> None:
        with harmless():
            if self._artifact is None:
                self._artifact = create_progress_artifact(percent, artifact_key("progress", self._stage), self._text)
            else:
                update_progress_artifact(self._artifact, progress=percent, description=self._text)


def pace(first: Event, now: Event) -> str:
    """The speed since the first event, and the time left. After a resume, the first event is not at the start."""
    seconds, done = (now["time"] - first["time"]) / 1000, now["done"] - first["done"]
    if seconds <= 0 or done <= 0:
        return ""
    rate = done / seconds
    return f"{rate:,.0f} images/s, {(now['total'] - now['done']) / rate:,.0f} s left"


def artifact_key(*words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")


@contextmanager
def harmless() -> Iterator[None]:
    """Log errors inside the block as warnings: a brief server outage must not fail the run."""
    try:
        yield
    except Exception as error:
        logging.getLogger(__name__).warning("Not shown in Prefect: %s", error)
