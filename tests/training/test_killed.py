"""If training is killed at any moment and started again, it ends with the same weights."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pspnet.config.params import Params
from pspnet.selfsup import METHODS as PRETRAINING
from pspnet.semisup import METHODS
from tests.kills import kill_seed
from tests.parameters import method_params, unlabeled_params
from tests.training.killed import digest_after_kills
from tests.training.trainings import Finished, changed, run_finetune, run_pretrain

Finetuned = Callable[[Params], Finished]
SEMI_SUPERVISED = [kind for kind in METHODS if kind != "none"]


def check(
    changes: dict[str, Any], kills: int, params: Params, prepared: Path, backbone: Path, finetuned: Finetuned,
    folder: Path,
) -> None:  # fmt: skip
    params = changed(params, finetune={"epochs": 3, **changes})
    whole = finetuned(params)
    run = partial(run_finetune, params, prepared, backbone)
    assert digest_after_kills(whole, run, folder, kills, kill_seed()) == whole.digest
    assert (folder / "history.csv").read_text() == whole.history


@pytest.mark.e2e
def test_a_training_that_is_killed_ends_with_the_same_weights(
    params: Params, prepared: Path, backbone: Path, finetuned: Finetuned, tmp_path: Path
) -> None:
    changes = {"ema_decay": 0.9, "optimizer": {"accumulation_steps": 2}}
    check(changes, 3, params, prepared, backbone, finetuned, tmp_path / "killed")


@pytest.mark.kills
@pytest.mark.parametrize(
    "changes",
    [
        {}, {"ema_decay": 0.9}, {"optimizer": {"accumulation_steps": 2}},
        *({"unlabeled": unlabeled_params(kind, images_per_step=4, confidence=0.2)} for kind in SEMI_SUPERVISED),
    ],
    ids=["as it is", "average", "in parts", *SEMI_SUPERVISED],
)  # fmt: skip
def test_training_that_is_killed_ten_times_ends_with_the_same_weights(
    changes: dict[str, Any], params: Params, prepared: Path, backbone: Path, finetuned: Finetuned, tmp_path: Path
) -> None:
    check(changes, 10, params, prepared, backbone, finetuned, tmp_path / "killed")


@pytest.mark.kills
@pytest.mark.parametrize(
    ("method", "settings"), [*((name, {}) for name in PRETRAINING), ("masked", {"select": "hard"})]
)
def test_pretraining_that_is_killed_ten_times_ends_with_the_same_weights(
    method: str, settings: dict[str, Any], params: Params, prepared: Path, pretrained: Finetuned, tmp_path: Path
) -> None:
    own = method_params(method, **settings)
    params = changed(params, pretrain={"method": own, "crop_px": 64, "epochs": 4})
    whole, folder = pretrained(params), tmp_path / "killed"
    assert digest_after_kills(whole, partial(run_pretrain, params, prepared), folder, 10, kill_seed()) == whole.digest
    assert (folder / "history.csv").read_text() == whole.history
