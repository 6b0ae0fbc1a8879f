"""Training that is killed repeatedly, each time in its own process."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.forked import FORKED
from tests.training.trainings import Finished, Place, Tick, place_of, quiet

Run = Callable[[Path, Tick], str]  # trains in this folder, and returns the digest of what it makes
BEGINNING = (0, 0)
ENVIRONMENT = {"PSPNET_CHECKPOINT_SECONDS": "0", "PSPNET_LOADER_WORKERS": "0"}


def digest_after_kills(whole: Finished, run: Run, folder: Path, kills: int, seed: int) -> str:
    """Return the digest of what `run` makes, after kills at random points of the `whole` training run and a final run
    to the end.
    """
    rng = random.Random(seed)
    places = [BEGINNING, *whole.places]
    for place in sorted(rng.sample(places, kills)):
        while not _killed_at(place, rng.uniform(0, whole.seconds / len(places)), run, folder):
            shutil.rmtree(folder)  # the run finished before the kill
    process, talk = _started(run, folder)
    assert _last(talk) == "done"
    process.join()
    return run(folder, quiet)  # this run changes nothing


def _started(run: Run, folder: Path) -> tuple[BaseProcess, Connection]:
    ours, theirs = FORKED.Pipe(duplex=False)
    process = FORKED.Process(target=_train, args=(run, folder, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _train(run: Run, folder: Path, talk: Connection) -> None:
    os.environ.update(ENVIRONMENT)
    talk.send(BEGINNING)
    run(folder, lambda done, _, note: talk.send(place_of(done, note)))
    talk.send("done")


def _killed_at(place: Place, seconds: float, run: Run, folder: Path) -> bool:
    """Kill the training process a few seconds after it reaches the point, unless it has already ended."""
    process, talk = _started(run, folder)
    while (reached := talk.recv()) != "done" and reached < place:
        pass
    time.sleep(seconds)
    process.kill()
    process.join()
    if process.exitcode == 0:
        return False
    assert process.exitcode == -signal.SIGKILL
    return not any((folder / made).exists() for made in ("bundle", "backbone"))


def _last(talk: Connection) -> object:
    reached: object = None
    while True:
        try:
            reached = talk.recv()
        except EOFError:
            return reached
