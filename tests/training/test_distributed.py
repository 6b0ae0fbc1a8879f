"""Several processes train like a single process, over gloo, which needs no GPU."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pspnet.errors import UserError
from pspnet.training.shared.distributed import Peers, check_pairs, check_shares
from tests.files import made_once
from tests.training.commands import started_together, statuses
from tests.training.peers import CASES, METHODS, main
from tests.training.pretrain_peers import CASES as PRETRAINING
from tests.training.pretrain_peers import main as pretrain

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def alone(shared: Path) -> Path:
    return made_once(shared / "training/alone", main)


@pytest.fixture(scope="session")
def together(shared: Path) -> Path:
    """Return the folder of a training run with two processes."""

    def make(folder: Path) -> None:
        assert statuses(started_together(2, main, folder)) == [0, 0]

    return made_once(shared / "training/together", make)


def differences(left: Path, right: Path) -> Iterator[float]:
    """Return the largest difference in each tensor of a checkpoint: weights, average, best weights, optimizer state."""
    one, other = load_file(left / "state.safetensors"), load_file(right / "state.safetensors")
    assert one.keys() == other.keys()
    return ((one[name].float() - other[name].float()).abs().max().item() for name in one)


@pytest.mark.e2e
@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one_with_the_whole_batch(case: str, alone: Path, together: Path) -> None:
    assert max(differences(alone / case, together / case)) < 1e-4
    first, second, single = (
        json.loads((folder / case / name).read_text())
        for folder, name in ((together, "records-0.json"), (together, "records-1.json"), (alone, "records-0.json"))
    )
    assert first == second
    for one, other in zip(first, single, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.e2e
def test_two_processes_pretrain_as_one_with_the_whole_batch(tmp_path: Path) -> None:
    """The queues of densecl are part of the checkpoint, so they are equal too."""
    pretrain(tmp_path / "alone")
    assert statuses(started_together(2, pretrain, tmp_path / "together")) == [0, 0]
    for case in PRETRAINING:
        alone, together = tmp_path / "alone" / case, tmp_path / "together" / case
        assert max(differences(alone, together)) < 1e-4, case
        records = [json.loads(path.read_text()) for path in sorted(together.glob("records-*.json"))]
        single = json.loads((alone / "records-0.json").read_text())
        assert records[0] == records[1]
        for one, other in zip(records[0], single, strict=True):
            assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize(("whole", "in_parts"), [("unequal", "in parts"), ("unimatch", "unimatch in parts")])
def test_a_batch_in_parts_equals_the_whole_batch(whole: str, in_parts: str, alone: Path) -> None:
    """The parts have unequal numbers of annotated pixels."""
    assert max(differences(alone / whole, alone / in_parts)) < 1e-4


def test_the_training_cases_differ(alone: Path) -> None:
    """Otherwise the tests above would prove little."""
    for case in CASES[1:4]:
        assert max(differences(alone / CASES[0], alone / case)) > 1e-3
    for case in METHODS:
        weights = load_file(alone / case / "state.safetensors")
        assert {name.partition(".")[0] for name in weights} >= {"module/supervised", "module/teacher"}
        history = json.loads((alone / case / "records-0.json").read_text())
        assert history[-1]["unlabeled_loss"] > 0.1


@pytest.mark.e2e
def test_processes_with_different_checkpoints_stop(alone: Path, together: Path) -> None:
    """This happens on hosts that do not keep their state on a shared disk."""
    message = "checkpoint: is at step 0 and 7 on different hosts; expected one folder for all. Put PSPNET_STATE on a"
    assert [(together / f"refusal-{rank}").read_text() for rank in range(2)] == [f"{message} shared disk."] * 2
    assert not (alone / "refusal-0").exists()


def test_a_batch_that_does_not_split_is_reported_with_sizes_that_do() -> None:
    check_shares("finetune", 8, 2, Peers(0, 2, CPU))
    with pytest.raises(UserError) as error:
        check_shares("finetune", 8, 1, Peers(0, 3, CPU))
    assert str(error.value) == (
        "finetune.batch_size: is 8, for 3 devices and optimizer.accumulation_steps 1; "
        "expected a multiple of 3, at least 6. Use 6 or 9, or change PSPNET_DEVICES."
    )
    with pytest.raises(UserError, match=r"is 2, for 4 devices .* a multiple of 4, at least 8. Use 8, or change"):
        check_shares("finetune", 2, 1, Peers(0, 4, CPU))
    # On GPUs, BatchNorm sees the images of all processes.
    check_shares("finetune", 4, 1, Peers(0, 4, torch.device("cuda", 0)))


def test_pairs_of_images_are_not_divided() -> None:
    check_pairs("finetune.unlabeled.images_per_step", 8, 2, Peers(0, 2, CPU))
    with pytest.raises(UserError) as error:
        check_pairs("finetune.unlabeled.images_per_step", 6, 1, Peers(0, 2, CPU))
    assert str(error.value) == (
        "finetune.unlabeled.images_per_step: is 6, for 2 devices and optimizer.accumulation_steps 1; expected a "
        "multiple of 4"
    )
