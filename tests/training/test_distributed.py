"""Several processes train as one would; over gloo, since that needs no GPU."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pspnet.errors import UserError
from pspnet.training.distributed import Peers, check_shares
from tests.parameters import ROOT
from tests.training.peers import CASES

CPU = torch.device("cpu")


def trainings(folder: Path, *torchrun: str) -> Path:
    subprocess.run(
        [sys.executable, *torchrun, "-m", "tests.training.peers", str(folder)],
        cwd=ROOT, timeout=200, check=True, capture_output=True,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trainings(tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    return trainings(tmp_path_factory.mktemp("shared"), *torchrun)


def differences(left: Path, right: Path) -> Iterator[float]:
    """Of everything that a checkpoint holds: weights, their average, the best ones, what the optimiser remembers."""
    one, other = load_file(left / "state.safetensors"), load_file(right / "state.safetensors")
    assert one.keys() == other.keys()
    return ((one[name].float() - other[name].float()).abs().max().item() for name in one)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one_with_the_whole_batch(case: str, alone: Path, shared: Path) -> None:
    assert max(differences(alone / case, shared / case)) < 1e-4
    first, second, single = (
        json.loads((folder / case / name).read_text())
        for folder, name in ((shared, "records-0.json"), (shared, "records-1.json"), (alone, "records-0.json"))
    )
    assert first == second
    for one, other in zip(first, single, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_a_batch_in_parts_is_the_whole_batch(alone: Path) -> None:
    """The parts have unequal numbers of annotated pixels."""
    assert max(differences(alone / "unequal", alone / "in parts")) < 1e-4


def test_the_cases_differ(alone: Path) -> None:
    """Or those above would prove little."""
    for case in CASES[1:4]:
        assert max(differences(alone / CASES[0], alone / case)) > 1e-3


def test_processes_that_have_read_different_checkpoints_do_not_go_on(alone: Path, shared: Path) -> None:
    """As hosts do whose state is not on a shared disk."""
    told = "checkpoint: is at step 0 and 7 on different hosts; expected one folder for all. Put PSPNET_STATE on a"
    assert [(shared / f"refusal-{rank}").read_text() for rank in range(2)] == [f"{told} shared disk."] * 2
    assert not (alone / "refusal-0").exists()


def test_a_batch_that_cannot_be_shared_out_is_told_with_ones_that_can() -> None:
    check_shares("finetune", 8, 2, Peers(0, 2, CPU))
    with pytest.raises(UserError) as error:
        check_shares("finetune", 8, 1, Peers(0, 3, CPU))
    assert str(error.value) == (
        "finetune.batch_size: is 8, for 3 devices and finetune.accumulation_steps 1; "
        "expected a multiple of 3, at least 6. Take 6 or 9, or set PSPNET_DEVICES to another number."
    )
    with pytest.raises(UserError, match=r"is 2, for 4 devices .* a multiple of 4, at least 8. Take 8, or set"):
        check_shares("finetune", 2, 1, Peers(0, 4, CPU))
    check_shares("finetune", 4, 1, Peers(0, 4, torch.device("cuda", 0)))  # whose BatchNorm sees the images of all
