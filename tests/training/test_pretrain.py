from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from pspnet.config.params import Params
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.errors import Interrupted, UserError
from pspnet.selfsup import METHODS, densecl
from tests.parameters import method_params
from tests.training.trainings import Finished, changed, run_pretrain, stopping_at

Pretrained = Callable[[Params], Finished]
STOP = (32, 0)  # a point in the second epoch


def with_method(params: Params, method: str, **settings: Any) -> Params:
    return changed(params, pretrain={"method": method_params(method, **settings), "crop_px": 64})


@pytest.mark.parametrize(("method", "settings"), [*((name, {}) for name in METHODS), ("masked", {"select": "hard"})])
def test_a_run_that_is_stopped_and_started_again_ends_the_same(
    method: str, settings: dict[str, Any], params: Params, prepared: Path, pretrained: Pretrained, tmp_path: Path
) -> None:
    params = with_method(params, method, **settings)
    whole = pretrained(params)
    with pytest.raises(Interrupted):
        run_pretrain(params, prepared, tmp_path, stopping_at(STOP))
    assert run_pretrain(params, prepared, tmp_path) == whole.digest
    for name in ("history.csv", "page.html"):
        assert (tmp_path / name).read_text() == (whole.folder / name).read_text()
    assert pd.read_csv(tmp_path / "history.csv")["loss"].notna().all()


def test_every_way_to_train_resumes_exactly(
    params: Params, prepared: Path, pretrained: Pretrained, tmp_path: Path
) -> None:
    optimizer = {"accumulation_steps": 2, "gradient_clip_norm": 0.5, "kind": "rmsprop", "schedule": "cosine",
                 "learning_rate": 0.0005, "decay_norms_and_biases": False}  # fmt: skip
    params = changed(params, pretrain={"method": method_params("rotation"), "optimizer": optimizer})
    whole = pretrained(params)
    with pytest.raises(Interrupted):
        run_pretrain(params, prepared, tmp_path, stopping_at(STOP))
    assert run_pretrain(params, prepared, tmp_path) == whole.digest
    assert pd.read_csv(tmp_path / "history.csv")["gradient_norm"].gt(0).all()


def test_a_loss_that_is_not_finite_names_the_files(params: Params, prepared: Path, tmp_path: Path) -> None:
    optimizer = {"learning_rate": 1e30, "warmup_steps": 0, "kind": "sgd"}
    params = changed(params, pretrain={"method": method_params("rotation"), "optimizer": optimizer})
    with pytest.raises(UserError, match=r"pretrain: the .* became .* in step \d+; .*: images/street\d+_\d+\.\w+, "):
        run_pretrain(params, prepared, tmp_path)
    assert len(list((tmp_path / "checkpoints").glob("pretrain-*/not-finite-0.safetensors"))) == 1


def test_a_run_that_collapses_is_stopped_with_or_without_a_resume(
    params: Params, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learning rate and a weight decay that are far too high make all images look the same to the network."""
    monkeypatch.setattr(densecl, "SETTLED_STEPS", 40)  # in this run, collapse comes sooner than usual
    optimizer = {"learning_rate": 1.0, "weight_decay": 0.9, "warmup_steps": 0}
    params = changed(params, pretrain={"method": method_params("densecl", queue_size=16), "epochs": 80,
                                       "crop_px": 32, "optimizer": optimizer})  # fmt: skip
    with pytest.raises(Interrupted):
        run_pretrain(params, prepared, tmp_path / "resumed", stopping_at((200, 0)))
    messages = []
    for folder in (tmp_path / "whole", tmp_path / "resumed"):
        with pytest.raises(
            UserError, match=r"densecl: the spread of the embeddings is 0\.0\d+ after \d\d steps"
        ) as error:
            run_pretrain(params, prepared, folder)
        messages.append(str(error.value))
        assert not (folder / "backbone").exists()
    assert messages[0] == messages[1]


def test_without_a_method_there_are_no_weights_and_the_history_is_empty(
    params: Params, prepared: Path, tmp_path: Path
) -> None:
    run_pretrain(with_method(params, "none"), prepared, tmp_path)
    assert [path.name for path in (tmp_path / "backbone").iterdir()] == ["backbone.json"]
    assert pd.read_csv(tmp_path / "history.csv").empty


def test_only_train_and_unlabeled_images_are_seen(params: Params, prepared: Path, pretrained: Pretrained) -> None:
    totals = {total for _, total, _ in pretrained(with_method(params, "rotation")).ticks}
    images = PreparedDataset.open(prepared).images
    seen = images["train"] + images["unlabeled"]
    batch = params.pretrain.batch_size
    assert totals == {params.pretrain.epochs * (seen // batch) * batch}
    assert images["val"] and images["test"]
    assert seen // batch != sum(images.values()) // batch  # otherwise the line above would prove nothing


def test_pretraining_changes_the_backbone(params: Params, pretrained: Pretrained) -> None:
    from pspnet.model.backbone.pretrained import random_backbone

    start = random_backbone(18, 0.125, 16, params.runtime.seed).state_dict()
    trained = load_file(pretrained(with_method(params, "rotation")).folder / "backbone/backbone.safetensors")
    assert trained.keys() == start.keys()
    assert not torch.equal(trained["conv1.weight"], start["conv1.weight"])


def test_too_few_images_for_a_batch_are_reported(params: Params, prepared: Path, tmp_path: Path) -> None:
    pretrain = params.pretrain.model_copy(update={"batch_size": 1000})
    with pytest.raises(UserError, match=r"pretrain.batch_size: is 1000; expected at most \d+, the number of training"):
        run_pretrain(params.model_copy(update={"pretrain": pretrain}), prepared, tmp_path)
