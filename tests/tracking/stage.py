"""A stage that trains nothing, as a process: python -m tests.tracking.stage FOLDER MODEL EPOCHS SECONDS PYTHON

It resumes up to two epochs before the point where it was killed, like training with a checkpoint. PYTHON runs the
stage's sender.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pspnet.machine.terminal import progress
from pspnet.tracking.attempt import stage_run
from tests.parameters import demo_params


def records(checkpoint: Path, epochs: int, seconds: float) -> Iterator[dict[str, float]]:
    saved = int(checkpoint.read_text()) if checkpoint.exists() else 0
    for epoch in range(1, epochs + 1):
        if epoch > saved:
            time.sleep(seconds)
        yield {"step": epoch, "epoch": epoch, "loss": 1 / epoch}
        if epoch > saved and epoch % 3 == 0:
            (checkpoint.with_name("new")).write_text(str(epoch))
            (checkpoint.with_name("new")).replace(checkpoint)


def main() -> None:
    folder, model, epochs, seconds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    sys.executable = sys.argv[5]
    params = demo_params(registry__model=model)
    out = folder / "run.json"
    with (
        progress("finetune"),
        stage_run(folder / ".pspnet", "finetune", params, ("finetune", "runtime"), out, print) as run,
    ):
        run.identify(training="digest")
        for record in run.epochs(records(folder / "checkpoint", epochs, seconds)):
            print("epoch", record["epoch"], flush=True)


if __name__ == "__main__":
    main()
