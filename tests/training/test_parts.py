"""What the two loops share: schedule, optimiser, order of the images, checkpoints, locks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pspnet.errors import Busy, UserError
from pspnet.process import exclusive
from pspnet.training import runtime
from pspnet.training.checkpoint import KEPT, Checkpoint, TrainingState, open_checkpoint, training_digest
from pspnet.training.loading import _Steps
from pspnet.training.optimizer import build_optimizer, learning_rate_at, set_learning_rate
from tests.parameters import ROOT, demo_params


def test_learning_rate_rises_in_a_line_and_falls_by_the_poly_rule() -> None:
    rates = [learning_rate_at(step, 100, 1.0, warmup_steps=3, poly_power=0.9) for step in range(100)]
    assert rates[:4] == pytest.approx([0.25, 0.5 * 0.99**0.9, 0.75 * 0.98**0.9, 0.97**0.9])
    assert rates[50] == pytest.approx(0.5**0.9)
    assert rates[99] == pytest.approx(0.01**0.9)
    assert learning_rate_at(0, 100, 1.0, warmup_steps=0, poly_power=0.9) == 1


def test_the_backbone_may_learn_at_another_rate_than_the_head() -> None:
    backbone, head = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = build_optimizer("sgd", [(backbone.parameters(), 0.1), (head.parameters(), 1.0)], 1.0, 0.9, 0.0)
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.5]


def test_frozen_parameters_are_left_out() -> None:
    frozen, free = nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2)
    optimizer = build_optimizer("adamw", [(frozen.parameters(), 1.0), (free.parameters(), 1.0)], 1.0, 0.9, 0.0)
    assert len(optimizer.param_groups) == 1


def test_every_epoch_shows_each_image_once_in_another_order() -> None:
    steps = list(_Steps(images=12, batch_size=4, seed=0, first_step=0, steps=6))
    epochs = [[position for step in steps[e * 3 : e * 3 + 3] for _, position in step] for e in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 2
    assert epochs[0] != epochs[1]
    assert {epoch for step in steps[3:] for epoch, _ in step} == {1}


def test_the_order_does_not_depend_on_where_it_starts() -> None:
    whole = list(_Steps(images=13, batch_size=4, seed=0, first_step=0, steps=9))
    assert all(len(step) == 4 for step in whole)
    assert list(_Steps(images=13, batch_size=4, seed=0, first_step=5, steps=9)) == whole[5:]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_checkpoint_restores_everything_bit_by_bit(optimizer: str, tmp_path: Path) -> None:
    def state() -> TrainingState:
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
        return TrainingState(module, build_optimizer(optimizer, [(module.parameters(), 1.0)], 0.1, 0.9, 0.01))  # type: ignore[arg-type]

    torch.manual_seed(0)
    before, after = state(), state()
    for _ in range(3):
        before.module(torch.randn(2, 3, 8, 8)).square().mean().backward()
        before.optimizer.step()
    before.step, before.records, before.sums = 3, [{"epoch": 1, "loss": 0.1}], {"loss": 0.1 + 0.2}
    before.best = {"weight": torch.randn(2, 2)}
    Checkpoint(tmp_path).save(before)
    Checkpoint(tmp_path).restore(after)
    assert (after.step, after.records, after.sums) == (before.step, before.records, before.sums)
    assert torch.equal(after.best["weight"], before.best["weight"])
    for weight, values in after.optimizer.state.items():
        moments = [value for value in values.values() if value.shape == weight.shape]
        assert moments
        assert all(moment.stride() == weight.stride() for moment in moments)  # else GPUs take another, slower path
    images = torch.randn(2, 3, 8, 8)
    for one in (before, after):
        one.optimizer.zero_grad()
        one.module(images).square().mean().backward()
        one.optimizer.step()
    tensors = zip(before.module.state_dict().values(), after.module.state_dict().values(), strict=True)
    assert all(torch.equal(left, right) for left, right in tensors)


def test_a_half_written_checkpoint_is_never_read(tmp_path: Path) -> None:
    module = nn.Linear(2, 2)
    state = TrainingState(module, build_optimizer("sgd", [(module.parameters(), 1.0)], 0.1, 0.9, 0.0), step=7)
    Checkpoint(tmp_path).save(state)
    (tmp_path / "state.safetensors.partial").write_bytes(b"half")
    Checkpoint(tmp_path).restore(state)
    assert state.step == 7


def test_only_the_newest_checkpoints_of_a_stage_are_kept(tmp_path: Path) -> None:
    for number in range(KEPT + 2):
        with open_checkpoint(tmp_path, "finetune", str(number)):
            pass
        os.utime(tmp_path / f"finetune-{number}", (number, number))
    with open_checkpoint(tmp_path, "pretrain", "other"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"finetune-2", "finetune-3", "finetune-4", "pretrain-other"}


def test_other_params_data_or_code_have_another_checkpoint() -> None:
    params = demo_params()
    digests = {
        training_digest({"finetune": params.finetune}, {"dataset": "a"}),
        training_digest({"finetune": params.finetune.model_copy(update={"epochs": 1})}, {"dataset": "a"}),
        training_digest({"finetune": params.finetune}, {"dataset": "b"}),
    }
    assert len(digests) == 3
    assert training_digest({"finetune": params.finetune}, {"dataset": "a"}) in digests


def test_other_code_of_a_stage_has_another_checkpoint(tmp_path: Path) -> None:
    """A finished checkpoint must not pass for the result of code that came later."""
    shutil.copytree(ROOT / "pspnet", tmp_path / "pspnet")
    code = """
import pspnet.stages.finetune
from pspnet.training.checkpoint import training_digest
print(training_digest({}, {}))
"""

    def digest() -> str:
        command = [sys.executable, "-c", code]  # finds the package in its working directory
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    before = digest()
    for changed in ("pspnet/stages/finetune.py", "pspnet/losses.py"):
        with (tmp_path / changed).open("a") as file:
            file.write("# changed\n")
        after = digest()
        assert after != before
        before = after
    with (tmp_path / "pspnet/terminal.py").open("a") as file:
        file.write("# changed\n")
    assert digest() == before


def test_a_second_training_of_the_same_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"""
import sys, time, pathlib
from pspnet.training.checkpoint import open_checkpoint
with open_checkpoint(pathlib.Path({str(tmp_path)!r}), "finetune", "a"):
    print("held", flush=True)
    time.sleep(60)
"""
    monkeypatch.setattr(exclusive.__wrapped__, "__defaults__", (0.2,))  # type: ignore[attr-defined]
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(Busy, match="Another process is using this checkpoint") as error,
            open_checkpoint(tmp_path, "finetune", "a"),
        ):
            pass
        assert error.value.exit_status == 75
        holder.kill()
    with open_checkpoint(tmp_path, "finetune", "a"):  # the system has let go of it
        pass


def test_every_step_has_randomness_of_its_own() -> None:
    def draw(seed: int, step: int) -> list[float]:
        runtime.seed_step(seed, step)
        return [float(x) for x in torch.rand(3)]

    assert draw(0, 5) == draw(0, 5)
    assert len({tuple(draw(seed, step)) for seed in range(3) for step in range(3)}) == 9


def test_a_wrong_setting_of_the_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSPNET_DEVICE", "abacus")
    with pytest.raises(UserError, match=r"PSPNET_DEVICE: 'abacus' cannot be used .*; expected cpu, cuda or cuda:N"):
        runtime.configure(demo_params().runtime)
    monkeypatch.setenv("PSPNET_LOADER_WORKERS", "-1")
    with pytest.raises(UserError, match="PSPNET_LOADER_WORKERS: is '-1'; expected a whole number, 0 or more"):
        runtime.loader_workers()


def test_batches_of_an_epoch_differ_between_seeds() -> None:
    orders = [np.array([p for step in _Steps(20, 4, seed, 0, 5) for _, p in step]) for seed in (0, 1)]
    assert (orders[0] != orders[1]).any()
