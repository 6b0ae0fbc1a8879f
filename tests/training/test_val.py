from pathlib import Path

import pandas as pd
import pytest

from pspnet.config.params import Params
from pspnet.dataset.annotated import AnnotatedImages
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.evaluation.measuring import measure
from pspnet.metrics import mean_iou
from pspnet.model.bundle import Bundle
from pspnet.stages import finetune as stage
from pspnet.tracking.run import StageRun
from tests.predicting import predictor
from tests.training.conftest import quiet


def test_an_epoch_is_measured_on_val(params: Params, prepared: Path, backbone: Path, tmp_path: Path) -> None:
    finetune = params.finetune.model_copy(update={"epochs": 1, "validations": 1})
    stage.run(
        params.backbone, finetune, params.runtime, prepared=prepared, pretrained=backbone, out=tmp_path / "bundle",
        history=tmp_path / "history.csv", checkpoints=tmp_path / "checkpoints", run=StageRun(), tick=quiet,
    )  # fmt: skip
    dataset, bundle = PreparedDataset.open(prepared), Bundle.load(tmp_path / "bundle")
    val = AnnotatedImages(dataset.reader(), dataset.annotated("val"))
    window_px = 2 * max(finetune.crop_height_px, finetune.crop_width_px)
    asked = predictor(bundle, window_px=window_px)
    confusion, _ = measure(asked, val, dataset.classes, dataset.ignore, lambda done: None)
    recorded = pd.read_csv(tmp_path / "history.csv")["val_mean_iou"]
    assert recorded.tolist() == [pytest.approx(mean_iou(confusion))]
