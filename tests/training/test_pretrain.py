from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from pspnet.config.params import Params
from pspnet.dataset.prepared import PreparedDataset
from pspnet.errors import Interrupted, UserError
from pspnet.model.weights import digest
from pspnet.selfsup import METHODS
from pspnet.stages import pretrain as stage
from pspnet.tracking.run import StageRun
from tests.training.conftest import quiet
from tests.training.test_finetune import stopping_after

Tick = Callable[[int, int, str], None]


def with_method(params: Params, method: str) -> Params:
    return params.model_copy(update={"pretrain": params.pretrain.model_copy(update={"method": method})})


def run(params: Params, prepared: Path, folder: Path, tick: Tick = quiet, weights: Path = Path("none")) -> str:
    stage.run(
        params.backbone,
        params.pretrain,
        params.runtime,
        prepared=prepared,
        weights=weights,
        out=folder / "backbone",
        history=folder / "history.csv",
        checkpoints=folder / "checkpoints",
        run=StageRun(),
        tick=tick,
    )
    return digest(folder / "backbone")


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_is_stopped_and_started_again_ends_the_same(
    method: str, params: Params, prepared: Path, tmp_path: Path
) -> None:
    params = with_method(params, method)
    whole = run(params, prepared, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(params, prepared, tmp_path / "stopped", stopping_after(5))
    assert run(params, prepared, tmp_path / "stopped") == whole
    assert (tmp_path / "stopped/history.csv").read_text() == (tmp_path / "whole/history.csv").read_text()
    assert pd.read_csv(tmp_path / "whole/history.csv")["loss"].notna().all()


def test_every_way_to_train_resumes_as_exactly(params: Params, prepared: Path, tmp_path: Path) -> None:
    changes = {"accumulation_steps": 2, "gradient_clip_norm": 0.5, "optimizer": "rmsprop", "schedule": "cosine",
               "learning_rate": 0.0005, "decay_norms_and_biases": False}  # fmt: skip
    params = with_method(params.model_copy(update={"pretrain": params.pretrain.model_copy(update=changes)}), "rotation")
    whole = run(params, prepared, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(params, prepared, tmp_path / "stopped", stopping_after(5))
    assert run(params, prepared, tmp_path / "stopped") == whole
    assert pd.read_csv(tmp_path / "whole/history.csv")["gradient_norm"].gt(0).all()


def test_a_loss_that_is_no_number_names_the_files(params: Params, prepared: Path, tmp_path: Path) -> None:
    pretrain = params.pretrain.model_copy(update={"learning_rate": 1e30, "warmup_steps": 0, "optimizer": "sgd"})
    params = with_method(params.model_copy(update={"pretrain": pretrain}), "rotation")
    with pytest.raises(UserError, match=r"pretrain: the .* became .* in step \d+; .*: images/street\d+_\d+\.\w+, "):
        run(params, prepared, tmp_path)
    assert len(list((tmp_path / "checkpoints").glob("pretrain-*/not-finite-0.safetensors"))) == 1


def test_no_method_writes_no_weights_and_an_empty_history(params: Params, prepared: Path, tmp_path: Path) -> None:
    run(with_method(params, "none"), prepared, tmp_path)
    assert [path.name for path in (tmp_path / "backbone").iterdir()] == ["backbone.json"]
    assert pd.read_csv(tmp_path / "history.csv").empty


def test_only_train_and_unlabelled_images_are_seen(params: Params, prepared: Path, tmp_path: Path) -> None:
    totals = set()
    run(with_method(params, "rotation"), prepared, tmp_path, lambda done, total, note: totals.add(total))
    images = PreparedDataset.open(prepared).images
    seen = images["train"] + images["unlabeled"]
    batch = params.pretrain.batch_size
    assert totals == {params.pretrain.epochs * (seen // batch) * batch}
    assert images["val"] and images["test"]
    assert seen // batch != sum(images.values()) // batch  # or the line above would prove nothing


def test_pretraining_changes_the_backbone(params: Params, prepared: Path, tmp_path: Path) -> None:
    from pspnet.model.pretrained import random_backbone

    run(with_method(params, "rotation"), prepared, tmp_path)
    start = random_backbone(18, 0.125, 16, params.runtime.seed).state_dict()
    trained = load_file(tmp_path / "backbone/backbone.safetensors")
    assert trained.keys() == start.keys()
    assert not torch.equal(trained["conv1.weight"], start["conv1.weight"])


def test_too_few_images_for_a_batch_are_told(params: Params, prepared: Path, tmp_path: Path) -> None:
    pretrain = params.pretrain.model_copy(update={"batch_size": 1000})
    with pytest.raises(UserError, match=r"pretrain.batch_size: is 1000; expected at most the \d+ images there are"):
        run(params.model_copy(update={"pretrain": pretrain}), prepared, tmp_path)
