"""Fine-tuning that also learns from images without masks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from pspnet.config.params import Params
from pspnet.dataset.annotated import Annotated, AnnotatedImages
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.dataset.training_samples import TrainingCrops
from pspnet.dataset.unlabeled_crops import UnlabeledCrops
from pspnet.demo.streets import synthesize
from pspnet.errors import Interrupted, UserError
from pspnet.losses.segmentation import build_loss
from pspnet.model.backbone.preprocessing import IMAGENET, Preprocessing
from pspnet.model.backbone.pretrained import PretrainedBackbone, random_backbone
from pspnet.model.bundle import Bundle
from pspnet.model.device import configure
from pspnet.semisup import METHODS
from pspnet.stages import prepare
from pspnet.tracking.run import StageRun
from pspnet.training.data import FinetuneData, Rows
from pspnet.training.finetune import build_network, finetune
from pspnet.training.shared.checkpoint import Checkpoint
from pspnet.training.shared.distributed import Peers
from pspnet.training.shared.steps import Session
from tests.files import made_once
from tests.parameters import demo_params, method_params, unlabeled_params
from tests.training.trainings import Finished, changed, quiet, run_finetune, run_pretrain, stopping_at

Finetuned = Callable[[Params], Finished]
KINDS = ("mean_teacher", "unimatch")


def using(kind: str, params: Params, settings: dict[str, Any] | None = None, **changes: Any) -> Params:
    """Three epochs of a few steps, of which the first has no images without masks."""
    own = {"images_per_step": 4, "confidence": 0.2, "warmup_share": 0.34, "decay": 0.9, **(settings or {})}
    return changed(params, finetune={"epochs": 3, **changes, "unlabeled": unlabeled_params(kind, **own)})


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    (state,) = folder.glob("checkpoints/finetune-*/state.safetensors")
    return load_file(state)


@pytest.mark.parametrize("kind", KINDS)
def test_training_stopped_anywhere_and_resumed_ends_the_same(
    kind: str, params: Params, prepared: Path, backbone: Path, finetuned: Finetuned, tmp_path: Path
) -> None:
    """In the warm-up, later, and in a validation."""
    params = using(kind, params)
    whole = finetuned(params)
    third = len(whole.places) // 3
    for place in [whole.places[moment] for moment in (0, third, third + 1, 2 * third, -1)]:
        with pytest.raises(Interrupted):
            run_finetune(params, prepared, backbone, tmp_path, stopping_at(place))
    assert run_finetune(params, prepared, backbone, tmp_path) == whole.digest
    assert (tmp_path / "history.csv").read_text() == whole.history
    resumed, undisturbed = state_of(tmp_path), state_of(whole.folder)
    assert all(torch.equal(resumed[name], undisturbed[name]) for name in undisturbed)
    assert any(name.startswith("module/teacher.") for name in undisturbed)


@pytest.mark.parametrize(
    ("kind", "changes", "precision"),
    [
        ("mean_teacher", {"optimizer": {"accumulation_steps": 2}, "ema_decay": 0.9}, "fp32"),
        ("unimatch", {"frozen_layers": 2, "ema_decay": 0.0}, "bf16"),
    ],
    ids=["in parts", "bf16"],
)
def test_every_way_to_train_resumes_exactly(
    kind: str, changes: dict[str, Any], precision: str, params: Params, prepared: Path, backbone: Path,
    finetuned: Finetuned, tmp_path: Path,
) -> None:  # fmt: skip
    params = changed(using(kind, params, **changes), runtime={"precision": precision})
    with pytest.raises(Interrupted):
        run_finetune(params, prepared, backbone, tmp_path, stopping_at((36, 0)))
    assert run_finetune(params, prepared, backbone, tmp_path) == finetuned(params).digest


@pytest.mark.parametrize("kind", KINDS)
def test_the_history_shows_the_accepted_share_of_each_class(kind: str, params: Params, finetuned: Finetuned) -> None:
    finished = finetuned(using(kind, params))
    history = pd.read_csv(finished.folder / "history.csv")
    accepted = history.filter(like="accepted/")
    assert list(accepted) == [f"accepted/{name}" for name in Bundle.load(finished.folder / "bundle").classes]
    assert accepted.iloc[0].isna().all() and (accepted.iloc[1:].sum(axis=1) > 0).all()
    assert (accepted.iloc[1:].sum(axis=1) <= 1 + 1e-9).all()
    assert history["unlabeled_loss"].iloc[0] == 0 and history["unlabeled_loss"].iloc[-1] > 0


def test_during_the_warm_up_training_is_supervised(params: Params, finetuned: Finetuned) -> None:
    """Until then the history equals that of training without a method; afterwards it differs."""
    with_masks = changed(params, finetune={"epochs": 3})
    one, other = (pd.read_csv(finetuned(own).folder / "history.csv") for own in (with_masks, using(KINDS[0], params)))
    assert not [name for name in one if name not in other]
    assert one.iloc[0].equals(other[list(one)].iloc[0])
    assert one["main_loss"].iloc[-1] != other["main_loss"].iloc[-1]


def test_ema_decay_alone_determines_which_weights_are_kept(
    params: Params, prepared: Path, backbone: Path, tmp_path: Path
) -> None:
    """With the same value as the teacher's, the kept weights are the teacher's."""

    def kept_and_teacher(name: str, ema_decay: float) -> tuple[torch.Tensor, torch.Tensor]:
        own = using("mean_teacher", params, epochs=1, ema_decay=ema_decay)
        run_finetune(own, prepared, backbone, tmp_path / name)
        kept = Bundle.load(tmp_path / name / "bundle").network.state_dict()["backbone.conv1.weight"]
        return kept, state_of(tmp_path / name)["module/teacher.backbone.conv1.weight"]

    assert torch.equal(*kept_and_teacher("same", 0.9))
    assert not torch.equal(*kept_and_teacher("none", 0.0))


def test_images_whose_masks_are_left_out_are_used_and_val_and_test_never(shared: Path) -> None:
    """Each group has an image without a mask: those of val and test stay there."""
    params = demo_params(dataset__labeled_fraction=0.5)

    def make(folder: Path) -> None:
        synthesize(folder / "raw", images=64, labeled=56, seed=1, tick=quiet)
        for mask in (folder / "raw/masks").glob("*_3.png"):
            mask.unlink()
        prepare.run(
            params.dataset, params.prepare, raw=folder / "raw", out=folder / "prepared",
            checkpoints=folder / "checkpoints", run=StageRun(), tick=quiet,
        )  # fmt: skip

    dataset = PreparedDataset.open(made_once(shared / "training/half-labeled", make) / "prepared")
    index, rows = dataset.index(), Rows.of(dataset)
    train = index[index["split"] == "train"]
    assert 0 < dataset.masks["train"] < len(train)
    own = using("mean_teacher", params, settings={"images_per_step": 2}).finetune
    data = FinetuneData.open(dataset, rows, own, (0, 0, 0), seed=0)
    assert data.unlabeled is not None
    unlabeled = {data.unlabeled.source(position) for position in range(len(data.unlabeled))}
    expected = index[(index["split"] == "unlabeled") | ((index["split"] == "train") & ~index["has_mask"])]
    assert unlabeled == set(expected["source"])
    assert len(expected[expected["split"] == "train"]) > 0 and len(expected[expected["split"] == "unlabeled"]) > 0
    masked = {data.train.source(position) for position in range(len(data.train))}
    assert masked == set(train[train["has_mask"]]["source"])
    kept_out = set(index[index["split"].isin(["val", "test"])]["source"])
    assert not kept_out & (masked | unlabeled)
    assert not index[index["split"].isin(["val", "test"])]["has_mask"].all()


def test_a_subset_of_the_masks_can_be_used_and_the_rest_as_images_without(prepared: Path, params: Params) -> None:
    dataset = PreparedDataset.open(prepared)
    rows = Rows.of(dataset)
    subset = Rows(rows.train.iloc[:4], pd.concat([rows.train.iloc[4:], rows.unlabeled]), rows.val)
    data = FinetuneData.open(dataset, subset, using("unimatch", params).finetune, (0, 0, 0), seed=0)
    assert data.unlabeled is not None
    assert (len(data.train), len(data.unlabeled)) == (4, len(rows.train) - 4 + len(rows.unlabeled))
    assert data.unlabeled[0, 0].keys() >= {"weak", "strong_0", "strong_1"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_run_and_the_bundle_name_the_images_without_masks(
    kind: str, params: Params, prepared: Path, finetuned: Finetuned
) -> None:
    fingerprints = PreparedDataset.open(prepared).fingerprints
    used = Bundle.load(finetuned(using(kind, params)).folder / "bundle").fingerprints
    assert used == {split: fingerprints[split] for split in ("train", "val", "unlabeled")}
    assert "unlabeled" not in Bundle.load(finetuned(params).folder / "bundle").fingerprints


def test_too_few_images_without_masks_are_reported(
    params: Params, prepared: Path, backbone: Path, tmp_path: Path
) -> None:
    many = using("mean_teacher", params, settings={"images_per_step": 1000})
    message = r"finetune.unlabeled.images_per_step: is 1000; expected at most \d+, the number of images without masks"
    with pytest.raises(UserError, match=message):
        run_finetune(many, prepared, backbone, tmp_path)


def test_pairs_that_do_not_split_into_parts_are_refused_in_the_params() -> None:
    settings = unlabeled_params("mean_teacher", images_per_step=6).model_dump()
    with pytest.raises(UserError, match=r"unlabeled.images_per_step of a multiple of 4"):
        demo_params(finetune__unlabeled=settings, finetune__optimizer__accumulation_steps=2)


def quarters(number: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image of four squares, each of one of three classes, and its mask."""
    rng = np.random.default_rng(number)
    mask = rng.integers(0, 3, (2, 2)).repeat(32, 0).repeat(32, 1).astype(np.uint8)
    colors = np.array([(60, 80, 60), (120, 100, 160), (200, 180, 90)])
    return (colors[mask] + rng.integers(-40, 41, (64, 64, 3))).astype(np.uint8), mask


class Quarters(TrainingCrops):
    """Four images, eight times in an epoch."""

    def __init__(self) -> None: ...

    def __len__(self) -> int:
        return 32

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        image, mask = quarters(key[1] % 4)
        return {"image": torch.from_numpy(image), "mask": torch.from_numpy(mask)}


class OtherQuarters(UnlabeledCrops):
    """Eight other images, whose strong views are darker and exchange their left halves."""

    def __init__(self, views: int) -> None:
        self._strong_views = views

    def __len__(self) -> int:
        return 8

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        weak = torch.from_numpy(quarters(100 + key[1])[0])
        box = torch.zeros(64, 64, dtype=torch.bool)
        box[:, :32] = True
        strong = {f"strong_{number}": weak - 20 for number in range(self._strong_views)}
        boxes = {f"box_{number}": box for number in range(self._strong_views)}
        return {"weak": weak, "inside": torch.ones_like(box), **strong, **boxes}


class MeasuredQuarters(AnnotatedImages):
    def __init__(self) -> None: ...

    def __len__(self) -> int:
        return 4

    def __getitem__(self, position: int) -> Annotated:
        return Annotated(str(position), "", *quarters(position))


@pytest.mark.parametrize("kind", KINDS)
def test_four_images_can_be_memorized(kind: str, tmp_path: Path) -> None:
    """Trained and measured on four images with masks, beside others without, the mean IoU passes 0.95."""
    params = demo_params(
        backbone__width=0.125, finetune__batch_size=4, finetune__crop_height_px=64, finetune__crop_width_px=64,
        finetune__optimizer__learning_rate=0.006, finetune__optimizer__warmup_steps=5, finetune__dropout=0.0,
        finetune__ema_decay=0.0, runtime__threads=1,
    )  # fmt: skip
    params = using(kind, params, {"confidence": 0.8}, epochs=10)
    classes, device = ("dark", "middle", "bright"), configure(params.runtime)
    loss_of = build_loss(params.finetune.loss, classes, [1, 1, 1], 255, False, device)
    others = OtherQuarters(METHODS[kind].strong_views)
    training = finetune(
        build_network(params.backbone, params.finetune, 3, 0), Preprocessing((0.5,) * 3, (0.25,) * 3),
        FinetuneData(Quarters(), MeasuredQuarters(), classes, 255, others), loss_of, params.finetune,
        Session(params.runtime, Peers(0, 1, device), Checkpoint(tmp_path), quiet),
    )  # fmt: skip
    last = list(training)[-1]
    assert last["val_mean_iou"] > 0.95
    assert sum(last[f"accepted/{name}"] for name in classes) > 0.5


@pytest.mark.parametrize("start", ["random", "imported", "inpainting"])
def test_any_backbone_can_be_fine_tuned(start: str, params: Params, prepared: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights/imported"
    weights.mkdir(parents=True)
    facts = PretrainedBackbone("none", 18, 0.125, IMAGENET, {}, weights="moco")
    facts.save(random_backbone(18, 0.125, 32, seed=9), weights)
    method = method_params(
        start if start == "inpainting" else "none", **({"block_px": 16} if start == "inpainting" else {})
    )
    params = using("unimatch", params, epochs=1)
    params = changed(
        params, backbone={"weights": "imported" if start == "imported" else "random"},
        pretrain={"method": method, "epochs": 1},
    )  # fmt: skip
    run_pretrain(params, prepared, tmp_path, weights=weights.parent)
    run_finetune(params, prepared, tmp_path / "backbone", tmp_path)
    expected = {"random": "none", "imported": "moco", "inpainting": "inpainting"}[start]
    assert Bundle.load(tmp_path / "bundle").pretraining == expected


def test_collapsing_pseudo_labels_stop_the_training(
    params: Params, prepared: Path, backbone: Path, tmp_path: Path
) -> None:
    """Every prediction counts, from the first step and much more than the masks: the network agrees with itself."""
    settings = {"confidence": 0.0, "class_balance": 0.0, "warmup_share": 0.0, "ramp_share": 0.0, "weight": 1000.0}
    own = using("mean_teacher", params, settings, epochs=8)
    with pytest.raises(UserError, match=r"the pseudo labels have collapsed: in the last 3 validations at least 100.0%"):
        run_finetune(own, prepared, backbone, tmp_path)
    with pytest.raises(UserError, match="have collapsed"):  # a resumed run stops too
        run_finetune(own, prepared, backbone, tmp_path)
