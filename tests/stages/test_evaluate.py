import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import accuracy_score, jaccard_score

from pspnet.config.params import Params
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.errors import UserError
from pspnet.evaluation.report import load_report
from pspnet.model.backbone.digest import digest
from pspnet.model.bundle import Bundle
from pspnet.stages import evaluate as stage
from pspnet.tracking.run import StageRun
from tests.raw.rawdata import write
from tests.training.conftest import quiet

Tick = Callable[[int, int, str], None]


def run(params: Params, prepared: Path, bundle: Path, folder: Path, tick: Tick = quiet) -> dict[str, Any]:
    histories = [
        write(folder / "pretrain.csv", "step,epoch,loss\n"),
        write(folder / "finetune.csv", "step,epoch,loss,val_mean_iou\n30,1.0,1.5,0.2\n60,2.0,1.25,0.25\n"),
    ]
    return stage.run(
        params.evaluate,
        params.predict,
        params.runtime,
        prepared=prepared,
        bundle=bundle,
        histories=histories,
        out=folder / "evaluation",
        metrics=folder / "metrics.json",
        run=StageRun(),
        tick=tick,
    )


def measured_by_hand(prepared: Path, bundle: Path) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Map each id to the annotated pixels of a test image and their prediction. Of our code, only
    the network is used.
    """
    dataset, model = PreparedDataset.open(prepared), Bundle.load(bundle)
    mean, std = (np.array(values) for values in (dataset.mean, dataset.std))
    pairs = {}
    for path in sorted((prepared.parent / "raw/images").iterdir()):
        if path.stem in set(dataset.annotated("test")["id"]):
            image = (np.array(Image.open(path)) / 255 - mean) / std
            with torch.inference_mode():
                logits = model.network(torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32)))
            mask = np.array(Image.open(prepared.parent / "raw/masks" / path.name))
            pairs[path.stem] = mask[mask != 255], logits[0].argmax(dim=0).numpy().astype(np.uint8)[mask != 255]
    return pairs


def test_the_numbers_equal_those_of_another_library_image_by_image(
    params: Params, prepared: Path, bundle: Path, tmp_path: Path
) -> None:
    summary = run(params, prepared, bundle, tmp_path)
    pairs = measured_by_hand(prepared, bundle)
    masks, predictions = (np.concatenate(pixels) for pixels in zip(*pairs.values(), strict=True))
    ious = jaccard_score(masks, predictions, average=None, labels=range(6), zero_division=0)
    assert len(np.unique(predictions)) > 2
    # Every class is in some mask, so no class is absent.
    assert summary["mean_iou"] == pytest.approx(ious.mean(), abs=1e-5)
    assert list(summary["class_iou"].values()) == pytest.approx(ious.tolist(), abs=1e-5)
    assert summary["pixel_accuracy"] == pytest.approx(accuracy_score(masks, predictions), abs=1e-5)
    assert (summary["images"], summary["pixels"]) == (len(pairs), len(masks))
    table = pd.read_parquet(tmp_path / "evaluation/images.parquet").set_index("id")
    assert set(table.index) == set(pairs)
    for name, (mask, prediction) in pairs.items():
        seen = np.union1d(mask, prediction)
        expected = jaccard_score(mask, prediction, average="macro", labels=seen, zero_division=0)
        assert table.loc[name, "mean_iou"] == pytest.approx(expected, abs=1e-4)


def test_the_report_is_a_page_a_file_for_programs_and_tables(
    params: Params, prepared: Path, bundle: Path, tmp_path: Path
) -> None:
    seen: list[tuple[int, int, str]] = []
    summary = run(params, prepared, bundle, tmp_path, lambda *tick: seen.append(tick))
    names = {path.name for path in (tmp_path / "evaluation").iterdir()}
    assert names == {
        "report.html", "report.json", "images.parquet", "groups.parquet", "confusion.csv", "picture.png"
    }  # fmt: skip
    report = load_report(tmp_path / "evaluation")
    dataset = PreparedDataset.open(prepared)
    assert (report.bundle, report.split, report.fingerprint) == (
        digest(bundle),
        "test",
        dataset.fingerprints["test"],
    )
    assert (report.classes, report.colors) == (dataset.classes, dataset.colors)
    assert report.summary() == summary
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics == {name: summary[name] for name in ("mean_iou", "pixel_accuracy", "class_iou")}
    images = len(dataset.annotated("test"))
    assert seen == [(done, images, "images") for done in range(1, images + 1)]


def test_pixels_of_the_images_add_up_to_those_of_the_split(
    params: Params, prepared: Path, bundle: Path, tmp_path: Path
) -> None:
    run(params, prepared, bundle, tmp_path)
    report = load_report(tmp_path / "evaluation")
    pairs = measured_by_hand(prepared, bundle)
    for k, name in enumerate(report.classes):
        counts = report.images.set_index("id")[[f"intersection_{name}", f"union_{name}"]]
        assert set(counts.dtypes) == {np.dtype(np.int64)}
        for image, (mask, prediction) in pairs.items():
            by_hand = [((mask == k) & (prediction == k)).sum(), ((mask == k) | (prediction == k)).sum()]
            # A pixel on the border of two classes may flip.
            assert counts.loc[image].tolist() == pytest.approx(by_hand, abs=2)
        both, either = counts.sum()
        assert both == report.confusion[k, k]
        assert both / either == report.class_iou[k]


@pytest.mark.parametrize("asked", [0, 2, 1000])
def test_the_page_shows_best_and_worst_images_and_none_twice(
    params: Params, prepared: Path, bundle: Path, tmp_path: Path, asked: int
) -> None:
    evaluate = params.evaluate.model_copy(update={"pictures": asked})
    run(params.model_copy(update={"evaluate": evaluate}), prepared, bundle, tmp_path)
    page = (tmp_path / "evaluation/report.html").read_text()
    table = pd.read_parquet(tmp_path / "evaluation/images.parquet").sort_values("mean_iou")
    # An image, its mask, its prediction and its errors.
    assert page.count("data:image/png;base64,") == 4 * min(2 * asked, len(table))
    if asked == 2:
        shown = [name for name in table["id"] if f">{name}<" in page]
        assert shown == [*table["id"][:2], *table["id"][-2:]]


def test_the_same_inputs_make_the_same_bytes(params: Params, prepared: Path, bundle: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    run(params, prepared, bundle, one)
    write(two / "evaluation/old.html", "from before")
    run(params, prepared, bundle, two)
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(two) for path in two.rglob("*") if path.is_file())
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)


def test_a_bundle_with_different_classes_is_refused(
    params: Params, prepared: Path, foreign_bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        run(params, prepared, foreign_bundle, tmp_path)
    assert str(error.value) == (
        f"{foreign_bundle}: has the classes class0, class1, class2, class3, class4, class5; "
        f"expected those of {prepared}: sky, road, building, tree, car, person. Run the finetune stage again."
    )
    assert not (tmp_path / "evaluation").exists()


def test_missing_inputs_are_reported_with_the_command_that_makes_them(
    params: Params, prepared: Path, bundle: Path, tmp_path: Path
) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(UserError) as error:
        run(params, nowhere, bundle, tmp_path)
    assert str(error.value) == (
        f"{nowhere}/dataset.json: is missing; expected a prepared dataset. Create it with: dvc repro prepare"
    )
    with pytest.raises(UserError) as error:
        run(params, prepared, nowhere, tmp_path)
    assert str(error.value) == (
        f"{nowhere}/model.json: is missing; expected the output of a stage. "
        "Create it with `dvc repro`, or give another folder."
    )
