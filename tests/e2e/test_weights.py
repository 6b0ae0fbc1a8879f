"""Imported weights in the pipeline: which stages they rerun, and how the weights reach other machines."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.e2e.pipeline import clone, commit, import_weights, ran, run, write_params

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("warm"), pytest.mark.timeout(900)]


def up_to_pretrain(project: Path) -> list[str]:
    """Run `dvc repro pretrain`. Returns the stages that ran."""
    return ran(run(project, "dvc", "repro", "pretrain"))


def first_convolution(project: Path) -> torch.Tensor:
    return load_file(project / "models/backbone/backbone.safetensors")["conv1.weight"]


def test_imported_weights_are_used_for_training_here_and_on_another_machine(finished: Path, tmp_path: Path) -> None:
    """Pretrain has already run without imported weights."""
    one = import_weights(finished, seed=1)
    write_params(finished, backbone__weights="imported", pretrain__method={"kind": "none"})
    assert up_to_pretrain(finished) == ["pretrain"]
    assert torch.equal(first_convolution(finished), one)
    (finished / "data/weights/README.md").write_text("another page\n")
    assert up_to_pretrain(finished) == []

    other = import_weights(finished, seed=2)
    assert up_to_pretrain(finished) == ["pretrain"]
    assert torch.equal(first_convolution(finished), other)
    assert not torch.equal(one, other)

    commit(finished, "--all")
    run(finished, "dvc", "push", "--quiet", "data/weights/imported.dvc", "data/raw.dvc")
    elsewhere = clone(finished, tmp_path / "other/clone")
    run(elsewhere, "dvc", "remote", "modify", "folder", "url", str(finished / ".pspnet/dvc-remote"))
    assert not (elsewhere / "data/weights/imported").exists()
    run(elsewhere, "dvc", "pull", "--quiet", "data/weights/imported.dvc", "data/raw.dvc")
    assert up_to_pretrain(elsewhere) == ["prepare", "pretrain"]
    assert torch.equal(first_convolution(elsewhere), other)
