import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pspnet.config.params import Params
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.dataset.training_samples import TrainingCrops
from pspnet.errors import Interrupted, UserError
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.bundle import Bundle
from pspnet.model.network import Architecture, PSPNet, SupervisedPSPNet
from pspnet.tracking.run import StageRun
from pspnet.training.finetune import freeze, train_mode
from tests.parameters import demo_params
from tests.training.trainings import Finished, changed, quiet, run_finetune, stopping_at

Finetuned = Callable[[Params], Finished]


def test_training_stopped_anywhere_and_resumed_ends_the_same(
    params: Params, prepared: Path, backbone: Path, finetuned: Finetuned, tmp_path: Path
) -> None:
    whole = finetuned(params)
    in_validation = whole.places.index((16, 1))
    moments = [0, in_validation - 1, in_validation, in_validation + 3, -1]  # at -1, there is nothing left to do
    for place in [whole.places[moment] for moment in moments]:
        with pytest.raises(Interrupted):
            run_finetune(params, prepared, backbone, tmp_path, stopping_at(place))
        assert not (tmp_path / "bundle").exists()
    assert run_finetune(params, prepared, backbone, tmp_path) == whole.digest
    assert (tmp_path / "history.csv").read_text() == whole.history


@pytest.mark.parametrize(
    "changes",
    [
        {"ema_decay": 0.9},
        {"optimizer": {"accumulation_steps": 2, "gradient_clip_norm": 0.5}},
        {
            "optimizer": {
                "kind": "rmsprop", "learning_rate": 0.0005, "schedule": "cosine", "learning_rate_floor": 0.1
            }
        },
        {
            "optimizer": {"kind": "sgd", "decay_norms_and_biases": False},
            "head_learning_rate_factor": 10.0, "frozen_layers": 2,
        },
        {"patience_validations": 1, "optimizer": {"learning_rate": 1.0}, "epochs": 6},
    ],
    ids=["average", "in parts", "rmsprop", "sgd", "patience"],
)  # fmt: skip
def test_every_way_to_train_resumes_exactly(
    changes: dict[str, Any], params: Params, prepared: Path, backbone: Path, finetuned: Finetuned, tmp_path: Path
) -> None:
    params = changed(params, finetune=changes)
    whole = finetuned(params)
    for place in ((12, 0), (24, 0)):  # one point in each epoch
        with pytest.raises(Interrupted):
            run_finetune(params, prepared, backbone, tmp_path, stopping_at(place))
    assert run_finetune(params, prepared, backbone, tmp_path) == whole.digest
    assert (tmp_path / "history.csv").read_text() == whole.history
    assert ("patience_validations" in changes) == (len(whole.history.splitlines()) - 1 < params.finetune.epochs)


def test_the_averaged_weights_are_measured_and_kept(
    params: Params, prepared: Path, backbone: Path, tmp_path: Path
) -> None:
    finetune = params.finetune.model_copy(update={"ema_decay": 0.9, "epochs": 1, "validations": 1})
    run_finetune(params.model_copy(update={"finetune": finetune}), prepared, backbone, tmp_path)
    (state,) = (tmp_path / "checkpoints").glob("finetune-*/state.safetensors")
    tensors = load_file(state)
    kept = Bundle.load(tmp_path / "bundle").network.state_dict()
    assert all(torch.equal(kept[name], tensors[f"average/network.{name}"]) for name in kept)
    assert not torch.equal(kept["backbone.conv1.weight"], tensors["module/supervised.network.backbone.conv1.weight"])
    assert not torch.equal(
        kept["backbone.bn1.running_mean"], tensors["module/supervised.network.backbone.bn1.running_mean"]
    )


def test_frozen_statistics_are_those_of_the_pretrained_backbone(
    params: Params, prepared: Path, backbone: Path, tmp_path: Path
) -> None:
    """The average of the weights has the same statistics. It follows the parts that are not frozen."""
    finetune = params.finetune.model_copy(update={"ema_decay": 0.9, "epochs": 1, "validations": 1, "frozen_layers": 1})
    run_finetune(params.model_copy(update={"finetune": finetune}), prepared, backbone, tmp_path)
    before = load_file(backbone / "backbone.safetensors")
    after = Bundle.load(tmp_path / "bundle").network.backbone.state_dict()
    for name in ("bn1.running_mean", "bn1.running_var", "conv1.weight"):
        assert torch.equal(before[name], after[name])
    assert not torch.equal(before["layer1.0.bn1.running_mean"], after["layer1.0.bn1.running_mean"])


class Poisoned(TrainingCrops):
    """Crops in which one image is NaN."""

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        sample = super().__getitem__(key)
        image = sample["image"].permute(2, 0, 1).float()  # the loader changes only tensors of uint8
        return {**sample, "image": torch.full_like(image, torch.nan) if key[1] == 5 else image}


def test_a_loss_that_is_not_finite_names_the_files_and_keeps_the_batch(
    params: Params, prepared: Path, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pspnet.training.data.TrainingCrops", Poisoned)
    with pytest.raises(UserError) as error:
        run_finetune(params, prepared, backbone, tmp_path)
    message = str(error.value)
    assert message.startswith("finetune: the loss became nan in step ")
    (kept,) = (tmp_path / "checkpoints").glob("finetune-*/not-finite-0.safetensors")
    assert f"kept in {kept}: " in message
    with safe_open(kept, "pt") as file:
        facts, images = file.metadata(), file.get_tensor("image")
    sources = json.loads(facts["sources"])
    poisoned = PreparedDataset.open(prepared).annotated("train")["source"].iloc[5]
    assert int(facts["step"]) == int(message.partition("in step ")[2].partition(";")[0])
    assert message.endswith(": " + ", ".join(sources))
    (place,) = [place for place, image in enumerate(images) if image.isnan().any()]
    assert sources[place] == poisoned


class Misnamed(TrainingCrops):
    """Crops whose masks have a value that is not a class."""

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        sample = super().__getitem__(key)
        sample["mask"][0, 0] = 77
        return sample


def test_a_mask_value_that_is_not_a_class_is_reported(
    params: Params, prepared: Path, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pspnet.training.data.TrainingCrops", Misnamed)
    with pytest.raises(UserError, match="A mask contains a value that is neither a class nor ignored, so prepare"):
        run_finetune(params, prepared, backbone, tmp_path)


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        ("cpu", "bf16"),
        pytest.param("cuda", "fp32", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
        pytest.param("cuda", "bf16", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
    ],
)
def test_training_on_other_devices_and_in_other_precisions_resumes_exactly(
    device: str, precision: str, params: Params, prepared: Path, backbone: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("PSPNET_DEVICE", device)
    params = changed(params, runtime={"precision": precision})
    whole = run_finetune(params, prepared, backbone, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run_finetune(params, prepared, backbone, tmp_path / "stopped", stopping_at((20, 0)))
    assert run_finetune(params, prepared, backbone, tmp_path / "stopped") == whole


def test_a_resumed_run_repeats_no_step(params: Params, prepared: Path, backbone: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    def stop(done: int, total: int, note: str) -> None:
        seen.append(done)
        raise Interrupted(130)

    with pytest.raises(Interrupted):
        run_finetune(params, prepared, backbone, tmp_path, stopping_at((8, 0)))
    with pytest.raises(Interrupted):
        run_finetune(params, prepared, backbone, tmp_path, stop)
    assert seen == [3 * params.finetune.batch_size]


@pytest.mark.e2e
@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_number_of_loader_processes_changes_nothing(
    params: Params, prepared: Path, backbone: Path, finetuned: Finetuned, tmp_path: Path, workers: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    alone = finetuned(params)
    monkeypatch.setenv("PSPNET_LOADER_WORKERS", workers)
    assert run_finetune(params, prepared, backbone, tmp_path) == alone.digest


def test_a_different_seed_gives_different_weights(params: Params, finetuned: Finetuned) -> None:
    assert finetuned(changed(params, runtime={"seed": 1})).digest != finetuned(params).digest


def test_the_best_weights_on_val_are_kept(params: Params, prepared: Path, backbone: Path, tmp_path: Path) -> None:
    """The learning rate is so high that the network eventually gets worse."""
    params = changed(params, finetune={"optimizer": {"learning_rate": 0.3}, "epochs": 6, "ema_decay": 0.0})
    run_finetune(params, prepared, backbone, tmp_path)
    history = pd.read_csv(tmp_path / "history.csv")
    best = int(history["val_mean_iou"].idxmax())
    assert best < len(history) - 1, "choose a learning rate at which the last epoch is not the best"
    (state,) = (tmp_path / "checkpoints").glob("finetune-*/state.safetensors")
    tensors = load_file(state)
    kept = Bundle.load(tmp_path / "bundle").network.state_dict()
    assert all(torch.equal(kept[name], tensors[f"best/network.{name}"]) for name in kept)
    assert any(not torch.equal(kept[name], tensors[f"module/supervised.network.{name}"]) for name in kept)


def test_training_can_end_mid_epoch_and_validate_between_epochs(
    params: Params, prepared: Path, backbone: Path, tmp_path: Path
) -> None:
    params = changed(params, finetune={"epochs": 1.5, "validations": 3})
    run_finetune(params, prepared, backbone, tmp_path)
    history = pd.read_csv(tmp_path / "history.csv")
    assert history["epoch"].tolist() == [0.5, 1.0, 1.5]


def test_history_has_a_line_for_each_validation(params: Params, finetuned: Finetuned) -> None:
    history = pd.read_csv(finetuned(params).folder / "history.csv")
    assert history["epoch"].tolist() == [1, 2]
    expected = history["main_loss"] + params.finetune.auxiliary_weight * history["auxiliary_loss"]
    assert history["loss"].tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def with_loss(params: Params, **changes: Any) -> Params:
    """Return params for a single epoch with this loss."""
    loss = params.finetune.loss.model_copy(update=changes)
    return params.model_copy(
        update={"finetune": params.finetune.model_copy(update={"loss": loss, "epochs": 1, "validations": 1})}
    )


@pytest.mark.parametrize("kind", ["cross_entropy", "cross_entropy_dice", "dice", "focal", "ohem"])
def test_each_kind_of_loss_resumes_exactly_and_makes_different_weights(
    kind: str, params: Params, prepared: Path, backbone: Path, finetuned: Finetuned, tmp_path: Path
) -> None:
    chosen = with_loss(params, kind=kind, class_weights="median_frequency")
    whole = finetuned(chosen).digest
    with pytest.raises(Interrupted):
        run_finetune(chosen, prepared, backbone, tmp_path, stopping_at((8, 0)))
    assert run_finetune(chosen, prepared, backbone, tmp_path) == whole
    assert finetuned(with_loss(params, class_weights="none")).digest != whole


def test_class_weights_are_recorded_with_the_run(
    params: Params, prepared: Path, backbone: Path, tmp_path: Path
) -> None:
    from tests.tracking.runs import entries

    def figures(chosen: Params, folder: Path) -> list[dict[str, float]]:
        sections = {"backbone": chosen.backbone, "finetune": chosen.finetune, "runtime": chosen.runtime}
        run = StageRun(folder, "finetune", sections, {"experiment": "m", "started": 1}, {"tags": {}, "started": 1})
        run_finetune(chosen, prepared, backbone, folder, run=run)
        assert run.error is None
        assert run.journal
        return [entry["values"] for entry in entries(run.journal.folder) if entry["kind"] == "figures"]

    [values] = figures(with_loss(params, class_weights="inverse_sqrt"), tmp_path / "weighted")
    dataset = PreparedDataset.open(prepared)
    names = [f"class_weight/{name}" for name in dataset.classes]
    assert list(values) == names
    pixels = dict(zip(names, dataset.class_pixels["train"], strict=True))
    assert sorted(names, key=pixels.__getitem__) == sorted(names, key=values.__getitem__, reverse=True)
    assert figures(with_loss(params, class_weights="none"), tmp_path / "plain") == []


def test_weights_given_for_other_classes_are_refused_before_training(
    params: Params, prepared: Path, backbone: Path, tmp_path: Path
) -> None:
    given = with_loss(params, class_weights="given", given_weights={"cat": 1.0})
    with pytest.raises(UserError, match=r"given_weights: names cat; expected the classes of the data: sky"):
        run_finetune(given, prepared, backbone, tmp_path)


def test_four_images_can_be_memorized(prepared: Path, backbone: Path, tmp_path: Path) -> None:
    """Trained and evaluated on the same four images, the network gets nearly every pixel right."""
    from pspnet.dataset.annotated import AnnotatedImages
    from pspnet.dataset.augmentation import Augmentation
    from pspnet.losses.segmentation import build_loss
    from pspnet.model.device import configure
    from pspnet.training.data import FinetuneData
    from pspnet.training.finetune import finetune
    from pspnet.training.shared.checkpoint import Checkpoint
    from pspnet.training.shared.distributed import Peers
    from pspnet.training.shared.steps import Session

    params = demo_params(
        backbone__width=0.25, finetune__epochs=10, finetune__batch_size=4, finetune__optimizer__learning_rate=0.006,
        finetune__optimizer__warmup_steps=5, finetune__dropout=0.0, runtime__threads=1,
    )  # fmt: skip
    dataset = PreparedDataset.open(prepared)
    four = dataset.annotated("train").head(4)
    often = pd.concat([four] * 8)  # several times in an epoch, so that val is not evaluated after each step
    plain = Augmentation(96, 128, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, (0, 0, 0), dataset.ignore)
    device = configure(params.runtime)
    pixels = dataset.class_pixels["train"]
    loss_of = build_loss(params.finetune.loss, dataset.classes, pixels, dataset.ignore, False, device)
    torch.manual_seed(0)
    architecture = Architecture(18, 0.25, 8, len(dataset.classes), dropout=0.0)
    training = finetune(
        SupervisedPSPNet(PSPNet(architecture)), Preprocessing(dataset.mean, dataset.std),
        FinetuneData(TrainingCrops(dataset.reader(), often, plain, seed=0), AnnotatedImages(dataset.reader(), four),
                        dataset.classes, dataset.ignore),
        loss_of, params.finetune, Session(params.runtime, Peers(0, 1, device), Checkpoint(tmp_path), quiet),
    )  # fmt: skip
    # The first match is enough, so later epochs need not run.
    assert any(record["val_pixel_accuracy"] > 0.95 for record in training)


def test_frozen_layers_keep_weights_and_statistics(
    params: Params, prepared: Path, backbone: Path, tmp_path: Path
) -> None:
    finetune = params.finetune.model_copy(update={"frozen_layers": 2, "epochs": 1, "validations": 1})
    run_finetune(params.model_copy(update={"finetune": finetune}), prepared, backbone, tmp_path)
    before = load_file(backbone / "backbone.safetensors")
    after = Bundle.load(tmp_path / "bundle").network.backbone.state_dict()
    changed = {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])}
    assert changed == {"layer2", "layer3", "layer4"}


def test_freezing_turns_off_gradients_and_batch_statistics() -> None:
    supervised = SupervisedPSPNet(PSPNet(Architecture(18, 0.125, 8, 3, dropout=0.1)))
    train_mode(supervised, freeze(supervised.network.backbone, 1))
    stem, (layer1,), *_ = supervised.network.backbone.layers()
    assert not any(parameter.requires_grad for module in stem for parameter in module.parameters())
    assert not any(module.training for module in stem)
    assert layer1.training


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 1000}, r"finetune.batch_size: is 1000; expected at most \d+, the number of training images"),
        (
            {"optimizer": {"learning_rate": 1e30, "warmup_steps": 0}},
            "the loss became .*; expected a finite number. In finetune.optimizer, lower learning_rate",
        ),
    ],
)
def test_training_that_cannot_work_is_refused_with_the_reason(
    params: Params, prepared: Path, backbone: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run_finetune(changed(params, finetune=changes), prepared, backbone, tmp_path)
