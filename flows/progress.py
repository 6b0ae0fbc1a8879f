"""A stage's progress as a Prefect artifact that is updated while the stage runs."""

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from flows.markdown import escaped

# A line that pspnet.machine.terminal prints:
# finetune: 1,200/4,800, 35/s, 103 s left, epoch 3/12, loss 0.412, val mIoU 0.61
LINE = re.compile(
    r"(?P<stage>[\w-]+): (?P<done>[\d,]+)/(?P<total>[\d,]+), "
    r"(?:(?P<rate>[\d,]+)/s, (?P<left>[\d,]+) s left, )?(?P<note>.*)"
)
BETWEEN_SECONDS = 5.0


@dataclass(frozen=True)
class ProgressLine:
    percent: float
    text: str


def parse_line(stage: str, line: str) -> ProgressLine | None:
    found = LINE.fullmatch(line)
    if found is None or found["stage"] != stage:
        return None
    done, total = (int(found[name].replace(",", "")) for name in ("done", "total"))
    pace = f"{found['rate']} images/s, {found['left']} s left" if found["rate"] else ""
    return ProgressLine(100 * done / total if total else 0.0, ", ".join(filter(None, [found["note"], pace])))


class Progress:
    """The progress of one attempt. A cached stage prints nothing, so it gets no artifact."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._artifact: Any = None
        self._updated = 0.0
        self._text = ""

    def read(self, line: str) -> None:
        now = time.monotonic()
        if now - self._updated >= BETWEEN_SECONDS and (found := parse_line(self._stage, line)):
            self._updated, self._text = now, escaped(found.text)
            self._show(found.percent)

    def finish(self) -> None:
        """Show 100 %, even if the stage printed no progress: an earlier attempt may have stopped halfway."""
        self._show(100.0)

    def _show(self, percent: float) -> None:
        with harmless():
            if self._artifact is None:
                self._artifact = create_progress_artifact(percent, artifact_key("progress", self._stage), self._text)
            else:
                update_progress_artifact(self._artifact, progress=percent, description=self._text)


def artifact_key(*words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")


@contextmanager
def harmless() -> Iterator[None]:
    """Log errors within the block as a warning: a server that is down for a moment must not fail the run."""
    try:
        yield
    except Exception as error:
        logging.getLogger(__name__).warning("Not shown in Prefect: %s", error)
