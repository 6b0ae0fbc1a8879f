"""`python -m tests.prediction.killed IMAGES BUNDLE BEFORE EXPECTED WORK MODE` kills predictions at every moment.

Each moment is just before a file in the folder is opened for writing, renamed or removed. In mode `once`, each run
starts from BEFORE, is killed at one moment and is started again. In mode `again and again`, the first run is killed at
its first moment, the run that continues it at its second, and so on. Prints the number of kills.
"""

import itertools
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from pspnet.prediction.image_folder import predict_folder
from tests.files import contents
from tests.parameters import demo_params
from tests.training.conftest import quiet

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}


def main(images: Path, bundle: Path, before: Path, expected: Path, work: Path, mode: str) -> None:
    for moment in itertools.count():
        if mode == "once" or moment == 0:
            shutil.rmtree(work, ignore_errors=True)
            if before.exists():
                shutil.copytree(before, work)
        if run(images, bundle, work, moment) == 0:
            assert contents(work) == contents(expected)
            print(moment)
            return
        assert_whole(work)
        if mode == "once":
            assert run(images, bundle, work, None) == 0
            assert contents(work) == contents(expected), f"killed at moment {moment}"


def run(images: Path, bundle: Path, out: Path, moment: int | None) -> int:
    """Run a prediction in a fork of this process, because imports take the most time. Returns the exit status; 0 means
    that the run was not killed.
    """
    child = os.fork()
    if child == 0:
        if moment is not None:
            kill_at(moment, out)
        params = demo_params(runtime__threads=1)
        own = (params.prepare, params.predict, params.runtime)
        predict_folder(*own, images=images, bundles=[bundle], out=out, layout=None, tick=quiet)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    ended = os.waitstatus_to_exitcode(status)
    assert ended in (0, -signal.SIGKILL), f"it ended with {ended}"
    return ended


def kill_at(moment: int, out: Path) -> None:
    left = moment

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (opened or event in CHANGES) and str(arguments[0]).startswith(str(out)):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(hook)


def assert_whole(out: Path) -> None:
    """Check that every row of the table has its pictures, and that each picture is complete."""
    for path in out.rglob("*.png"):
        with Image.open(path) as picture:
            picture.load()
    if (out / "predictions.parquet").exists():
        for name in pq.read_table(out / "predictions.parquet")["image"].to_pylist():
            assert (out / f"masks/{name}.png").exists()
            assert (out / f"overlays/{name}.png").exists()


if __name__ == "__main__":
    images, bundle, before, expected, work = map(Path, sys.argv[1:6])
    main(images, bundle, before, expected, work, sys.argv[6])
