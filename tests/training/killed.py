"""`python -m tests.training.killed PREPARED BACKBONE WORK KILLS CHANGES`: a training that SIGKILL hits again and again.

Prints the digests of the bundle of a training left alone, and of the one that was killed. CHANGES: JSON, by which its
params differ from those of `params`.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from pspnet.model.weights import digest
from pspnet.stages import finetune
from pspnet.tracking.run import StageRun
from tests.kills import SEED
from tests.parameters import demo_params
from tests.training.conftest import quiet


def main(prepared: Path, backbone: Path, work: Path, kills: int, changes: dict[str, Any]) -> None:
    started = time.monotonic()
    assert train(prepared, backbone, work / "alone", changes, None)
    seconds = time.monotonic() - started
    rng = random.Random(SEED)
    left = kills
    while left:
        if train(prepared, backbone, work / "killed", changes, rng.uniform(0, 0.6 * seconds)):
            shutil.rmtree(work / "killed")  # it was over before the kill came
        else:
            left -= 1
    assert train(prepared, backbone, work / "killed", changes, None)
    histories = [(work / name / "history.csv").read_text() for name in ("alone", "killed")]
    assert histories[0] == histories[1]
    print(digest(work / "alone/bundle"), digest(work / "killed/bundle"))


def train(prepared: Path, backbone: Path, folder: Path, changes: dict[str, Any], seconds: float | None) -> bool:
    """Whether it came to its end before it was killed. In a copy of this process: imports take longer than all else."""
    child = os.fork()
    if child == 0:
        params = demo_params(
            backbone__width=0.125, finetune__epochs=3, finetune__batch_size=4, finetune__crop_height_px=48,
            finetune__crop_width_px=64, finetune__warmup_steps=2, runtime__threads=1, **changes,
        )  # fmt: skip
        finetune.run(
            params.backbone, params.finetune, params.runtime, prepared=prepared, pretrained=backbone,
            out=folder / "bundle", history=folder / "history.csv", checkpoints=folder / "checkpoints",
            run=StageRun(), tick=quiet,
        )  # fmt: skip
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    ended = os.waitstatus_to_exitcode(status)
    assert ended in (0, -signal.SIGKILL), f"it ended with {ended}"
    return ended == 0


if __name__ == "__main__":
    prepared, backbone, work = map(Path, sys.argv[1:4])
    main(prepared, backbone, work, int(sys.argv[4]), json.loads(sys.argv[5]))
