"""Imported weights in the pipeline, under DVC: what they make run again, and how they reach other machines."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.e2e.pipeline import STEPS, checkout, clone, run, write_params
from tests.model.foreign import random_tensors

pytestmark = pytest.mark.timeout(400)
SYNTHESIZE = ("pspnet", "synthesize", "data/raw", "--images", "40", "--labelled", "28")


def import_weights(project: Path, seed: int) -> torch.Tensor:
    """The first convolution."""
    tensors = random_tensors("torchvision_resnet18", seed, narrow=8)
    file = project.parent / f"resnet18-{seed}.pth"
    torch.save(tensors, file)
    said = run(project, "pspnet", "weights", "import", str(file), "--from", "torchvision")
    assert "100.0% of the tensors (backbone 100 of 100)" in said
    return tensors["conv1.weight"]


def up_to_pretrain(project: Path) -> list[str]:
    """The stages that ran."""
    said = run(project, "dvc", "repro", "pretrain")
    return [step for step in STEPS if f"Running stage '{step}'" in said]


def commit(project: Path) -> None:
    run(project, "git", "add", "--all")
    run(project, "git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "--message", "more")


def first_convolution(project: Path) -> torch.Tensor:
    return load_file(project / "models/backbone/backbone.safetensors")["conv1.weight"]


def test_imported_weights_begin_a_training_here_and_elsewhere(tmp_path: Path) -> None:
    project = checkout(tmp_path / "here", pretrain__method="none")
    run(project, *SYNTHESIZE)
    run(project, "dvc", "add", "--quiet", "data/raw")
    assert up_to_pretrain(project) == ["prepare", "pretrain"]  # with no weights there

    one = import_weights(project, seed=1)
    write_params(project, backbone__weights="imported")
    assert up_to_pretrain(project) == ["pretrain"]
    assert torch.equal(first_convolution(project), one)
    (project / "data/weights/README.md").write_text("another page\n")
    assert up_to_pretrain(project) == []

    other = import_weights(project, seed=2)
    assert up_to_pretrain(project) == ["pretrain"]
    assert torch.equal(first_convolution(project), other)
    assert not torch.equal(one, other)

    commit(project)
    run(project, "dvc", "push", "--quiet", "data/weights/imported.dvc", "data/raw.dvc")
    elsewhere = clone(project, tmp_path / "other/clone")
    run(elsewhere, "dvc", "remote", "modify", "folder", "url", str(project / ".pspnet/dvc-remote"))
    assert not (elsewhere / "data/weights/imported").exists()
    run(elsewhere, "dvc", "pull", "--quiet", "data/weights/imported.dvc", "data/raw.dvc")
    assert up_to_pretrain(elsewhere) == ["prepare", "pretrain"]
    assert torch.equal(first_convolution(elsewhere), other)


def test_a_retraining_in_a_worktree_brings_the_weights_along(tmp_path: Path) -> None:
    project = checkout(tmp_path / "here", backbone__weights="imported", promotion__min_mean_iou=0.0)
    run(project, *SYNTHESIZE)
    import_weights(project, seed=1)
    commit(project)
    said = run(project, "pspnet", "retrain", "--set", "finetune.learning_rate=0.001")
    assert "data/weights/imported" in said
    assert "is now champion" in said
