"""Training that is killed repeatedly, each time in its own process."""

import os
import random
import shutil
import signal
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from pspnet.config.params import Params
from tests.forked import FORKED
from tests.training.trainings import Finished, Place, place_of, run_finetune

BEGINNING = (0, 0)
ENVIRONMENT = {"PSPNET_CHECKPOINT_SECONDS": "0", "PSPNET_LOADER_WORKERS": "0"}


def digest_after_kills(
    whole: Finished, params: Params, prepared: Path, backbone: Path, folder: Path, kills: int, seed: int
) -> str:
    """Return the bundle's digest after kills at random points of the `whole` training run and a
    final run to the end.
    """
    rng = random.Random(seed)
    places = [BEGINNING, *whole.places]
    for place in sorted(rng.sample(places, kills)):
        while not _killed_at(place, rng.uniform(0, whole.seconds / len(places)), params, prepared, backbone, folder):
            shutil.rmtree(folder)  # the run finished before the kill
    process, talk = _started(params, prepared, backbone, folder)
    assert _last(talk) == "done"
    process.join()
    return run_finetune(params, prepared, backbone, folder)  # this run changes nothing


def _started(params: Params, prepared: Path, backbone: Path, folder: Path) -> tuple[BaseProcess, Connection]:
    ours, theirs = FORKED.Pipe(duplex=False)
    process = FORKED.Process(target=_train, args=(params, prepared, backbone, folder, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _train(params: Params, prepared: Path, backbone: Path, folder: Path, talk: Connection) -> None:
    os.environ.update(ENVIRONMENT)
    talk.send(BEGINNING)
    run_finetune(params, prepared, backbone, folder, lambda done, _, note: talk.send(place_of(done, note)))
    talk.send("done")


def _killed_at(place: Place, seconds: float, params: Params, prepared: Path, backbone: Path, folder: Path) -> bool:
    """Kill the training process a few seconds after it reaches the point, unless it has already ended."""
    process, talk = _started(params, prepared, backbone, folder)
    while (reached := talk.recv()) != "done" and reached < place:
        pass
    time.sleep(seconds)
    process.kill()
    process.join()
    if process.exitcode == 0:
        return False
    assert process.exitcode == -signal.SIGKILL
    return not (folder / "bundle").exists()


def _last(talk: Connection) -> object:
    reached: object = None
    while True:
        try:
            reached = talk.recv()
        except EOFError:
            return reached
