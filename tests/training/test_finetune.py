from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from pspnet.config.params import Params
from pspnet.errors import Interrupted, UserError
from pspnet.model.bundle import Bundle
from pspnet.model.network import Architecture, PSPNet, SupervisedPSPNet
from pspnet.model.preprocessing import Preprocessing
from pspnet.model.pretrained import PretrainedBackbone, random_backbone
from pspnet.model.weights import digest
from pspnet.stages import finetune as stage
from pspnet.tracking.run import StageRun
from pspnet.training.finetune import freeze, train_mode
from tests.parameters import demo_params
from tests.training.conftest import quiet

GRAY = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
Tick = Callable[[int, int, str], None]


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    folder = tmp_path / "backbone"
    folder.mkdir()
    PretrainedBackbone("rotation", 18, 0.125, GRAY, {}).save(random_backbone(18, 0.125, 8, seed=0), folder)
    return folder


def run(params: Params, prepared: Path, backbone: Path, folder: Path, tick: Tick = quiet) -> str:
    """The bundle's digest."""
    stage.run(
        params.backbone,
        params.finetune,
        params.runtime,
        prepared=prepared,
        pretrained=backbone,
        out=folder / "bundle",
        history=folder / "history.csv",
        checkpoints=folder / "checkpoints",
        run=StageRun(),
        tick=tick,
    )
    return digest(folder / "bundle")


def stopping_after(ticks: int) -> Tick:
    count = 0

    def tick(done: int, total: int, note: str) -> None:
        nonlocal count
        count += 1
        if count == ticks:
            raise Interrupted(130)

    return tick


def test_a_run_that_is_stopped_anywhere_and_started_again_ends_the_same(
    params: Params, prepared: Path, backbone: Path, tmp_path: Path
) -> None:
    notes: list[str] = []
    whole = run(params, prepared, backbone, tmp_path / "whole", lambda done, total, note: notes.append(note))
    history = (tmp_path / "whole" / "history.csv").read_text()
    in_validation = next(number for number, note in enumerate(notes, start=1) if "val" in note)
    last = len(notes)
    for ticks in (1, in_validation - 1, in_validation, in_validation + 3, last):  # the last: nothing is left to do
        folder = tmp_path / f"stopped-{ticks}"
        with pytest.raises(Interrupted):
            run(params, prepared, backbone, folder, stopping_after(ticks))
        assert not (folder / "bundle").exists()
        assert run(params, prepared, backbone, folder) == whole
        assert (folder / "history.csv").read_text() == history


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        ("cpu", "bf16"),
        pytest.param("cuda", "fp32", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
        pytest.param("cuda", "bf16", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
    ],
)
def test_other_devices_and_precisions_resume_as_exactly(
    device: str, precision: str, params: Params, prepared: Path, backbone: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("PSPNET_DEVICE", device)
    params = params.model_copy(update={"runtime": params.runtime.model_copy(update={"precision": precision})})
    whole = run(params, prepared, backbone, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(params, prepared, backbone, tmp_path / "stopped", stopping_after(6))
    assert run(params, prepared, backbone, tmp_path / "stopped") == whole


def test_a_resumed_run_repeats_no_step(params: Params, prepared: Path, backbone: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    with pytest.raises(Interrupted):
        run(params, prepared, backbone, tmp_path, stopping_after(2))
    run(params, prepared, backbone, tmp_path, lambda done, total, note: seen.append(done))
    assert min(seen) == 3 * params.finetune.batch_size


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_number_of_loader_processes_changes_nothing(
    params: Params, prepared: Path, backbone: Path, tmp_path: Path, workers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PSPNET_LOADER_WORKERS", "0")
    alone = run(params, prepared, backbone, tmp_path / "alone")
    monkeypatch.setenv("PSPNET_LOADER_WORKERS", workers)
    assert run(params, prepared, backbone, tmp_path / "many") == alone


def test_another_seed_gives_other_weights(params: Params, prepared: Path, backbone: Path, tmp_path: Path) -> None:
    first = run(params, prepared, backbone, tmp_path / "first")
    other = params.model_copy(update={"runtime": params.runtime.model_copy(update={"seed": 1})})
    assert run(other, prepared, backbone, tmp_path / "other") != first


def test_the_best_epoch_on_val_is_kept(params: Params, prepared: Path, backbone: Path, tmp_path: Path) -> None:
    """Under a learning rate so high that the network gets worse again."""
    finetune = params.finetune.model_copy(update={"learning_rate": 1.0, "epochs": 6})
    run(params.model_copy(update={"finetune": finetune}), prepared, backbone, tmp_path)
    history = pd.read_csv(tmp_path / "history.csv")
    best = int(history["val_mean_iou"].idxmax())
    assert best < len(history) - 1, "choose a learning rate under which the last epoch is not the best"
    (state,) = (tmp_path / "checkpoints").glob("finetune-*/state.safetensors")
    tensors = load_file(state)
    kept = Bundle.load(tmp_path / "bundle").network.state_dict()
    assert all(torch.equal(kept[name], tensors[f"best/network.{name}"]) for name in kept)
    assert any(not torch.equal(kept[name], tensors[f"module/network.{name}"]) for name in kept)


def test_history_has_a_line_for_each_epoch(params: Params, prepared: Path, backbone: Path, tmp_path: Path) -> None:
    run(params, prepared, backbone, tmp_path)
    history = pd.read_csv(tmp_path / "history.csv")
    assert history["epoch"].tolist() == [1, 2, 3]
    expected = history["main_loss"] + params.finetune.auxiliary_weight * history["auxiliary_loss"]
    assert history["loss"].tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_four_images_can_be_learnt_by_heart(prepared: Path, backbone: Path, tmp_path: Path) -> None:
    """Trained and measured on the same four images, the network gets nearly every pixel right."""
    from pspnet.dataset.annotated import AnnotatedImages
    from pspnet.dataset.prepared import PreparedDataset
    from pspnet.dataset.segmentation import TrainingCrops
    from pspnet.dataset.transforms import Augmentation
    from pspnet.training.checkpoint import Checkpoint
    from pspnet.training.finetune import finetune
    from pspnet.training.runtime import configure

    params = demo_params(
        backbone__width=0.25, finetune__epochs=60, finetune__batch_size=4, finetune__learning_rate=0.004,
        finetune__warmup_steps=5, finetune__dropout=0.0, runtime__threads=1,
    )  # fmt: skip
    dataset = PreparedDataset.open(prepared)
    four = dataset.annotated("train").head(4)
    plain = Augmentation(96, 128, 1.0, 1.0, 0.0, 0.0, (0, 0, 0), dataset.ignore)
    torch.manual_seed(0)
    architecture = Architecture(18, 0.25, 8, len(dataset.classes), dropout=0.0)
    records = list(
        finetune(
            SupervisedPSPNet(PSPNet(architecture)), Preprocessing(dataset.mean, dataset.std),
            TrainingCrops(dataset.reader(), four, plain, seed=0), AnnotatedImages(dataset.reader(), four),
            dataset.classes, dataset.ignore, params.finetune, params.runtime, configure(params.runtime),
            Checkpoint(tmp_path), quiet,
        )
    )  # fmt: skip
    assert max(record["val_pixel_accuracy"] for record in records) > 0.95


def test_frozen_layers_keep_weights_and_statistics(
    params: Params, prepared: Path, backbone: Path, tmp_path: Path
) -> None:
    finetune = params.finetune.model_copy(update={"frozen_layers": 2, "epochs": 1})
    run(params.model_copy(update={"finetune": finetune}), prepared, backbone, tmp_path)
    before = load_file(backbone / "backbone.safetensors")
    after = Bundle.load(tmp_path / "bundle").network.backbone.state_dict()
    changed = {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])}
    assert changed == {"layer2", "layer3", "layer4"}


def test_freezing_turns_off_gradients_and_batch_statistics() -> None:
    supervised = SupervisedPSPNet(PSPNet(Architecture(18, 0.125, 8, 3, dropout=0.1)))
    train_mode(supervised, freeze(supervised.network.backbone, 1))
    backbone = supervised.network.backbone
    assert not backbone.conv1.weight.requires_grad
    assert not backbone.bn1.training
    assert backbone.layer1.training


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 1000}, r"finetune.batch_size: is 1000; expected at most the \d+ training images there are"),
        ({"learning_rate": 1e30, "warmup_steps": 0}, "the loss became .*; expected a finite number. Lower finetune"),
    ],
)
def test_a_training_that_cannot_work_says_why(
    params: Params, prepared: Path, backbone: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    finetune = params.finetune.model_copy(update=changes)
    with pytest.raises(UserError, match=message):
        run(params.model_copy(update={"finetune": finetune}), prepared, backbone, tmp_path)
