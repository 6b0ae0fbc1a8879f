import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kills import share_of
from tests.parameters import ROOT


def digests(prepared: Path, backbone: Path, folder: Path, kills: int, changes: dict[str, Any]) -> list[str]:
    """Of the bundle of a training left alone, and of the one that was killed."""
    arguments = [str(argument) for argument in (prepared, backbone, folder, kills, json.dumps(changes))]
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.killed", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=380, check=False,
        env={**os.environ, "PSPNET_CHECKPOINT_SECONDS": "0", "PSPNET_LOADER_WORKERS": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_training_that_is_killed_ends_with_the_same_weights(prepared: Path, backbone: Path, tmp_path: Path) -> None:
    changes = {"finetune__ema_decay": 0.9, "finetune__accumulation_steps": 2}
    alone, killed = digests(prepared, backbone, tmp_path, 3, changes)
    assert alone == killed


@pytest.mark.kills
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "changes",
    [{}, {"finetune__ema_decay": 0.9}, {"finetune__accumulation_steps": 2}],
    ids=["as it is", "average", "in parts"],
)
def test_a_training_killed_ten_times_ends_with_the_same_weights(
    changes: dict[str, Any], prepared: Path, backbone: Path, tmp_path: Path
) -> None:
    alone, killed = digests(prepared, backbone, tmp_path, share_of(10), changes)
    assert alone == killed
