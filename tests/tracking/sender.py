"""A sender without its own process. It delivers after the stage has ended, with MLflow in pytest's process."""

import time
from pathlib import Path

from pspnet.tracking.connection import short_timeouts
from pspnet.tracking.delivery import Delivery
from pspnet.tracking.sender import Limits, Sending, Watch

SOON = Limits(poll=0.01, longest_pause=0.01, away=0.05)


class Inline:
    def __init__(self, state: Path) -> None:
        self._state, self._watch = state, Watch(SOON)

    def follow(self, folder: Path) -> None:
        self._watch.name(folder)

    def finish(self, seconds: float) -> int | None:
        watch = self._watch
        if watch.folder is None:
            return 0
        watch.end()
        with short_timeouts():
            sending = Sending(self._state, Delivery(self._state, watch.folder), watch)
            while not sending.step():
                if (status := watch.verdict(time.monotonic(), time.process_time())) is not None:
                    return status
                sending.pause()
        return 0
