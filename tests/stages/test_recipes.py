"""Each recipe trains on a few tiny files that are laid out like the recipe's data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pspnet.config.params import Params
from pspnet.config.reading import read_yaml, validate
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.model.bundle import Bundle
from pspnet.stages import prepare
from pspnet.tracking.run import StageRun
from tests.parameters import ROOT, changed
from tests.training.trainings import quiet, run_finetune, run_pretrain

SIDE = 40


def save(pixels: NDArray[np.uint8], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def image(number: int) -> NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def halves(left: int, right: int) -> NDArray[np.uint8]:
    mask = np.full((SIDE, SIDE), left, np.uint8)
    mask[:, SIDE // 2 :] = right
    return mask


def voc(raw: Path) -> None:
    for number in range(24):
        save(image(number), raw / f"JPEGImages/{number:02}.jpg")
        save(halves(0, 15), raw / f"SegmentationClassAug/{number:02}.png")
    for split, numbers in {"train": range(20), "val": range(20, 24)}.items():
        path = raw / f"ImageSets/Segmentation/{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{number:02}\n" for number in numbers))


def cityscapes(raw: Path) -> None:
    for number in range(24):
        folder = "train/aachen" if number < 20 else "val/lindau"
        save(image(number), raw / f"leftImg8bit/{folder}/city_{number:06}_000019_leftImg8bit.png")
        save(halves(7, 0), raw / f"gtFine/{folder}/city_{number:06}_000019_gtFine_labelIds.png")


def ade20k(raw: Path) -> None:
    for number in range(24):
        folder = "training" if number < 20 else "validation"
        save(image(number), raw / f"images/{folder}/ADE_{number:08}.jpg")
        save(halves(1, 150), raw / f"annotations/{folder}/ADE_{number:08}.png")


def mvtec(raw: Path) -> None:
    for number in range(10):
        save(image(number), raw / f"train/good/{number:03}.png")
    for number in range(12):
        save(image(100 + number), raw / f"test/scratch/{number:03}.png")
        save(halves(0, 255), raw / f"ground_truth/scratch/{number:03}_mask.png")


def bright(raw: Path) -> None:
    for number in range(24):
        save(image(number), raw / f"images/{number}.png")
        save(halves(10, 240), raw / f"masks/{number}.png")


def colors(raw: Path) -> None:
    for number in range(24):
        save(image(number), raw / f"images/{number}.png")
        mask = np.where(halves(0, 1)[:, :, None], (255, 255, 0), (0, 0, 255))
        save(mask.astype(np.uint8), raw / f"masks/{number}.png")


RAW: dict[str, Callable[[Path], None]] = {
    "voc2012": voc, "cityscapes": cityscapes, "many-gpus": ade20k, "rare-defects": mvtec, "thin-structures": bright,
    "large-images": colors,
}  # fmt: skip


def tiny(recipe: str) -> Params:
    """Return the recipe with a tiny network and short training, without downloads or compilation. All other choices are
    kept.
    """
    changes: dict[str, Any] = {
        "prepare__val_share": 0.3, "backbone__depth": 18, "backbone__width": 0.125, "backbone__weights": "random",
        "pretrain__epochs": 1, "pretrain__batch_size": 4, "pretrain__crop_px": 64,
        "pretrain__optimizer__warmup_steps": 1, "finetune__epochs": 1, "finetune__batch_size": 8,
        "finetune__crop_height_px": 33, "finetune__crop_width_px": 33, "runtime__threads": 1, "runtime__compile": False,
    }  # fmt: skip
    content = read_yaml(ROOT / f"recipes/{recipe}.yaml")
    return validate(Params, changed(content, changes), recipe)


@pytest.mark.parametrize("recipe", RAW)
def test_a_recipe_trains_on_files_laid_out_like_its_data(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PSPNET_LOADER_WORKERS", "0")
    params = tiny(recipe)
    RAW[recipe](tmp_path / "raw")
    prepare.run(
        params.dataset, params.prepare, raw=tmp_path / "raw", out=tmp_path / "prepared",
        checkpoints=tmp_path / "checkpoints", run=StageRun(), tick=quiet,
    )  # fmt: skip
    run_pretrain(params, tmp_path / "prepared", tmp_path / "pretrain")
    run_finetune(params, tmp_path / "prepared", tmp_path / "pretrain/backbone", tmp_path / "finetune")
    dataset = PreparedDataset.open(tmp_path / "prepared")
    assert all(dataset.images[split] for split in ("train", "val", "test"))
    assert Bundle.load(tmp_path / "finetune/bundle").classes == dataset.classes
