"""The parts that both training loops share: schedule, optimizer, image order, checkpoints, locks."""

import itertools
import math
import os
import shutil
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from pspnet.config.optimizer import OptimizerParams
from pspnet.errors import Busy, UserError
from pspnet.machine.code import code_digest
from pspnet.machine.process import exclusive
from pspnet.model.averaging import move_average, start_average
from pspnet.model.device import configure
from pspnet.training.finetune import is_over, validation_steps
from pspnet.training.shared import runtime
from pspnet.training.shared.checkpoint import KEPT, Checkpoint, TrainingState, open_checkpoint, training_digest
from pspnet.training.shared.distributed import Peers
from pspnet.training.shared.loading import Key, Stream, _Steps
from pspnet.training.shared.optimizer import (
    build_optimizer,
    clip_gradient,
    gradient_norm,
    learning_rate_at,
    set_learning_rate,
)
from tests.forked import FORKED
from tests.parameters import ROOT, demo_params

CPU = torch.device("cpu")
ALONE = Peers(0, 1, CPU)


def of(**changes: Any) -> OptimizerParams:
    """Return params for SGD with a learning rate of 1 and everything else off, except for these changes."""
    plain: dict[str, Any] = {
        "kind": "sgd", "learning_rate": 1.0, "momentum": 0.9, "weight_decay": 0.0, "decay_norms_and_biases": True,
        "schedule": "poly", "warmup_steps": 0, "poly_power": 0.9, "learning_rate_floor": 0.0,
        "gradient_clip_norm": 0.0, "accumulation_steps": 1,
    }  # fmt: skip
    return OptimizerParams(**plain | changes)


def test_the_learning_rate_rises_linearly_and_falls_by_the_poly_rule() -> None:
    rates = [learning_rate_at(step, 100, of(warmup_steps=3)) for step in range(100)]
    assert rates[:4] == pytest.approx([0.25, 0.5 * 0.99**0.9, 0.75 * 0.98**0.9, 0.97**0.9])
    assert rates[50] == pytest.approx(0.5**0.9)
    assert rates[99] == pytest.approx(0.01**0.9)
    assert learning_rate_at(0, 100, of()) == 1


def test_the_learning_rate_falls_along_half_a_cosine_and_not_below_the_floor() -> None:
    rates = [learning_rate_at(step, 100, of(learning_rate=2.0, schedule="cosine")) for step in range(101)]
    assert rates[0] == 2
    assert rates[25] == pytest.approx(1 + math.sqrt(0.5))
    assert rates[50] == pytest.approx(1)
    assert rates[100] == pytest.approx(0)
    floored = [learning_rate_at(step, 100, of(learning_rate=2.0, learning_rate_floor=0.1)) for step in range(101)]
    assert floored[0] == 2
    assert floored[50] == pytest.approx(0.2 + 1.8 * 0.5**0.9)  # other projects call this eta_min 0.2
    assert floored[100] == pytest.approx(0.2)


def test_the_backbone_can_learn_at_a_different_rate_from_the_head() -> None:
    backbone, head = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = build_optimizer(of(), [(backbone.parameters(), 0.1), (head.parameters(), 1.0)])
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.5]


def test_frozen_parameters_are_left_out() -> None:
    frozen, free = nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2)
    optimizer = build_optimizer(of(kind="adamw"), [(frozen.parameters(), 1.0), (free.parameters(), 1.0)])
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("name", ["adamw", "sgd", "rmsprop"])
def test_norms_and_biases_can_be_exempt_from_weight_decay(name: Any) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = [parameter.detach().clone() for parameter in module.parameters()]
    params = of(kind=name, learning_rate=0.1, weight_decay=0.5, decay_norms_and_biases=False)
    optimizer = build_optimizer(params, [(module.parameters(), 1.0)])
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    changed = [not torch.equal(*pair) for pair in zip(before, module.parameters(), strict=True)]
    assert changed == [True, False, False, False]


def test_a_long_gradient_is_shortened_and_its_length_reported() -> None:
    module = nn.Linear(2, 1, bias=False)
    module.weight.grad = torch.tensor([[3.0, 4.0]])
    norm = gradient_norm(module)
    assert norm.item() == 5
    clip_gradient(module, norm, longest=0)
    assert module.weight.grad.tolist() == [[3, 4]]
    clip_gradient(module, norm, longest=10)
    assert module.weight.grad.tolist() == [[3, 4]]
    clip_gradient(module, norm, longest=1)
    assert module.weight.grad.flatten().tolist() == pytest.approx([0.6, 0.8], rel=1e-5)


def test_the_average_moves_toward_the_weights_and_copies_their_counts() -> None:
    module = nn.BatchNorm1d(2)
    average = start_average(module)
    with torch.no_grad():
        module.weight.fill_(2)
        module.running_mean.fill_(10)  # type: ignore[union-attr]
        module.num_batches_tracked.fill_(7)  # type: ignore[union-attr]
    move_average(average, module, decay=0.9, step=0)  # early on, only a tenth of the old average is kept
    assert average.weight.tolist() == pytest.approx([1.9, 1.9])
    assert average.running_mean.tolist() == pytest.approx([9, 9])  # type: ignore[union-attr]
    assert average.num_batches_tracked == 7
    move_average(average, module, decay=0.5, step=1000)
    assert average.weight.tolist() == pytest.approx([1.95, 1.95])
    assert not average.weight.requires_grad


def test_validations_are_evenly_spread_and_the_last_one_ends_the_training() -> None:
    params = demo_params(finetune__validations=3).finetune
    assert validation_steps(params, 10) == [3, 7, 10]
    assert validation_steps(params, 3) == [1, 2, 3]
    with pytest.raises(UserError, match=r"finetune\.validations: is 3; expected at most 2"):
        validation_steps(params, 2)


@pytest.mark.parametrize(
    ("ious", "patience", "over"),
    [
        ([], 2, False),
        ([0.1, 0.5, 0.4], 2, False),
        ([0.1, 0.5, 0.4, 0.5], 2, True),  # an equal value does not count as better
        ([0.1, 0.5, 0.4, 0.5], 0, False),
        ([0.1, 0.5, 0.4, 0.6], 2, False),
        ([0.1] * 6, 0, True),
    ],
)
def test_training_ends_early_when_val_stops_improving(ious: list[float], patience: int, over: bool) -> None:
    params = demo_params(finetune__epochs=6, finetune__patience_validations=patience).finetune
    assert is_over([{"val_mean_iou": iou} for iou in ious], params) == over


def keys(images: int, per_step: int, seed: int, steps: range, peers: Peers = ALONE) -> list[list[Key]]:
    """The keys of each step."""
    streams = [Stream(Dataset(), images, per_step)]
    return [[key for _, key in step] for step in _Steps(streams, seed, steps.start, steps.stop, peers)]


def test_every_epoch_shows_each_image_once_in_a_different_order() -> None:
    steps = keys(12, 4, seed=0, steps=range(6))
    epochs = [[position for step in steps[e * 3 : e * 3 + 3] for _, position in step] for e in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 2
    assert epochs[0] != epochs[1]
    assert {epoch for step in steps[3:] for epoch, _ in step} == {1}


def test_the_order_does_not_depend_on_where_it_starts() -> None:
    whole = keys(13, 4, seed=0, steps=range(9))
    assert all(len(step) == 4 for step in whole)
    assert keys(13, 4, seed=0, steps=range(5, 9)) == whole[5:]


def test_devices_share_the_images_of_each_step() -> None:
    whole = keys(13, 4, seed=0, steps=range(9))
    shares = [keys(13, 4, 0, range(9), Peers(rank, 2, torch.device("cpu"))) for rank in range(2)]
    assert [first + second for first, second in zip(*shares, strict=True)] == whole


def test_streams_begin_at_their_own_step_and_have_their_own_order() -> None:
    """Devices share the images of each stream, and pairs of images stay together."""
    streams = [Stream(Dataset(), 8, 2), Stream(Dataset(), 8, 4, first_step=3)]
    whole = list(_Steps(streams, 0, 0, 7, ALONE))
    assert [[number for number, _ in step] for step in whole] == [[0, 0]] * 3 + [[0, 0, 1, 1, 1, 1]] * 4
    first, second = ([key for step in whole for of, key in step if of == number] for number in range(2))
    assert first[:8] != second[:8]
    assert sorted(second) == [(epoch, position) for epoch in range(2) for position in range(8)]
    shares = [list(_Steps(streams, 0, 0, 7, Peers(rank, 2, CPU))) for rank in range(2)]
    for own, other, step in zip(*shares, whole, strict=True):
        assert [own[:1] + other[:1], own[1:] + other[1:]] == [step[:2], step[2:]]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "rmsprop"])
def test_a_checkpoint_restores_everything_bit_for_bit(optimizer: str, tmp_path: Path) -> None:
    params = of(kind=optimizer, learning_rate=0.1, weight_decay=0.01, decay_norms_and_biases=False)

    def state() -> TrainingState:
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
        built = build_optimizer(params, [(module.parameters(), 1.0)])
        return TrainingState(module, built, average=start_average(module))

    torch.manual_seed(0)
    before, after = state(), state()
    for _ in range(3):
        before.module(torch.randn(2, 3, 8, 8)).square().mean().backward()
        before.optimizer.step()
    before.step, before.records, before.sums = 3, [{"epoch": 1, "loss": 0.1}], {"loss": 0.1 + 0.2}
    before.best = {"weight": torch.randn(2, 2)}
    assert before.average is not None
    assert after.average is not None
    move_average(before.average, before.module, decay=0.9, step=3)
    Checkpoint(tmp_path).save(before)
    Checkpoint(tmp_path).restore(after)
    assert (after.step, after.records, after.sums) == (before.step, before.records, before.sums)
    assert torch.equal(after.best["weight"], before.best["weight"])
    averages = zip(before.average.state_dict().values(), after.average.state_dict().values(), strict=True)
    assert all(torch.equal(left, right) for left, right in averages)
    for weight, values in after.optimizer.state.items():
        moments = [value for value in values.values() if value.shape == weight.shape]
        assert moments
        assert all(moment.stride() == weight.stride() for moment in moments)  # otherwise GPUs would take a slower path
    images = torch.randn(2, 3, 8, 8)
    for one in (before, after):
        one.optimizer.zero_grad()
        one.module(images).square().mean().backward()
        one.optimizer.step()
    tensors = zip(before.module.state_dict().values(), after.module.state_dict().values(), strict=True)
    assert all(torch.equal(left, right) for left, right in tensors)


def test_a_half_written_checkpoint_is_never_read(tmp_path: Path) -> None:
    module = nn.Linear(2, 2)
    state = TrainingState(module, build_optimizer(of(), [(module.parameters(), 1.0)]), step=7)
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


def test_changed_params_data_code_or_device_get_a_different_checkpoint() -> None:
    params = demo_params()
    shorter = params.finetune.model_copy(update={"epochs": 1})
    digests = {
        training_digest("finetune", {"finetune": params.finetune}, {"dataset": "a"}, CPU),
        training_digest("finetune", {"finetune": shorter}, {"dataset": "a"}, CPU),
        training_digest("finetune", {"finetune": params.finetune}, {"dataset": "b"}, CPU),
        training_digest("pretrain", {"finetune": params.finetune}, {"dataset": "a"}, CPU),
        training_digest("finetune", {"finetune": params.finetune}, {"dataset": "a"}, torch.device("cuda")),
    }
    assert len(digests) == 5
    assert training_digest("finetune", {"finetune": params.finetune}, {"dataset": "a"}, CPU) in digests


def test_changed_stage_code_gets_a_different_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished checkpoint must not be treated as the result of later code."""
    shutil.copytree(ROOT / "pspnet", tmp_path / "pspnet")
    monkeypatch.setattr("pspnet.machine.code.PACKAGE", tmp_path / "pspnet")

    def change(name: str) -> str:
        with (tmp_path / "pspnet" / name).open("a") as file:
            file.write("# changed\n")
        return training_digest("finetune", {}, {}, CPU)

    digests = [training_digest("finetune", {}, {}, CPU)]
    parts = ("stages/finetune.py", "losses/terms.py", "prediction/image/windows.py", "losses/new.py")
    digests += [change(name) for name in parts]
    assert len(set(digests)) == 5
    assert {change(name) for name in ("machine/terminal.py", "stages/pretrain.py", "losses/notes.txt")} == {digests[-1]}


def test_the_digest_of_code_does_not_depend_on_which_modules_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    before = training_digest("finetune", {}, {}, CPU)
    for name in [name for name in sys.modules if name.startswith("pspnet.losses")]:
        monkeypatch.delitem(sys.modules, name)
    assert training_digest("finetune", {}, {}, CPU) == before


def test_a_room_that_does_not_exist_has_no_digest() -> None:
    with pytest.raises(FileNotFoundError, match="no code there"):
        code_digest(["losses", "loses"])


def test_a_second_training_with_the_same_checkpoint_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exclusive.__wrapped__, "__defaults__", (0.2,))  # type: ignore[attr-defined]
    with open_checkpoint(tmp_path, "finetune", "a"):
        with open_checkpoint(tmp_path, "finetune", "b"):
            pass
        with (
            pytest.raises(Busy, match="Another process is using this checkpoint") as error,
            open_checkpoint(tmp_path, "finetune", "a"),
        ):
            pass
        assert error.value.exit_status == 75
    with open_checkpoint(tmp_path, "finetune", "a"):
        pass


def hold(folder: Path, talk: Connection) -> None:
    with open_checkpoint(folder, "finetune", "a"):
        talk.send("held")
        talk.recv()


@pytest.mark.e2e
def test_the_checkpoint_of_a_killed_training_run_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exclusive.__wrapped__, "__defaults__", (0.2,))  # type: ignore[attr-defined]
    ours, theirs = FORKED.Pipe()
    holder = FORKED.Process(target=hold, args=(tmp_path, theirs), daemon=True)
    holder.start()
    assert ours.recv() == "held"
    with pytest.raises(Busy), open_checkpoint(tmp_path, "finetune", "a"):
        pass
    holder.kill()
    holder.join()
    with open_checkpoint(tmp_path, "finetune", "a"):  # by now, the system has released the lock
        pass


def test_every_step_has_its_own_randomness() -> None:
    def draw(*place: int) -> list[float]:
        runtime.seed_step(*place)
        return [float(x) for x in torch.rand(3)]

    assert draw(0, 5, 0, 1) == draw(0, 5, 0, 1)
    places = list(itertools.product(range(3), repeat=4))  # seed, step, device and part of the step
    assert len({tuple(draw(*place)) for place in places}) == len(places)


def test_an_invalid_machine_setting_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSPNET_DEVICE", "abacus")
    with pytest.raises(UserError, match=r"PSPNET_DEVICE: 'abacus' cannot be used .*; expected cpu, cuda or cuda:N"):
        configure(demo_params().runtime)
    monkeypatch.setenv("PSPNET_LOADER_WORKERS", "-1")
    with pytest.raises(UserError, match="PSPNET_LOADER_WORKERS: is '-1'; expected a whole number, 0 or more"):
        runtime.loader_workers()


def test_batches_of_an_epoch_differ_between_seeds() -> None:
    orders = [np.array([p for step in keys(20, 4, seed, range(5)) for _, p in step]) for seed in (0, 1)]
    assert (orders[0] != orders[1]).any()
