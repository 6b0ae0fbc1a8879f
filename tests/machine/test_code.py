"""Tests which stages rerun after which edit. `tests/test_contracts.py` shows that DVC's stages
depend on the same code.
"""

import shutil
from pathlib import Path

import pytest

from pspnet.machine import code
from pspnet.machine.code import CODE, code_digest

ALL = ("prepare", "pretrain", "finetune", "evaluate")
TRAIN_AND_MEASURE = ("pretrain", "finetune", "evaluate")
# One file from each room (a folder of code), and one from each part of a room that only some stages depend on.
RUN_AGAIN: dict[str, tuple[str, ...]] = {
    "checkout/doctor.py": (),
    "cli/stages.py": (),
    "config/backbone.py": (),
    "config/dataset.py": ("prepare",),
    "config/evaluate.py": ("evaluate",),
    "config/finetune.py": ("finetune",),
    "config/optimizer.py": (),
    "config/params.py": (),
    "config/predict.py": ("evaluate",),
    "config/prepare.py": ("prepare",),
    "config/pretrain.py": ("pretrain",),
    "config/promotion.py": (),
    "dataset/training_samples.py": TRAIN_AND_MEASURE,
    "dataset/store/shards.py": ALL,
    "demo/streets.py": (),
    "errors.py": (),
    "evaluation/measuring.py": ("finetune", "evaluate"),
    "evaluation/pages/chart.html.j2": ("pretrain", "evaluate"),
    "evaluation/pretraining/page.html.j2": ("pretrain", "evaluate"),
    "evaluation/pretraining/probing.py": ("pretrain", "evaluate"),
    "evaluation/report.html.j2": ("evaluate",),
    "evaluation/report.py": ("evaluate",),
    "inspection/remarks.py": (),
    "losses/terms.py": ("finetune",),
    "machine/outputs.py": (),
    "machine/terminal.py": (),
    "machine/worktree.py": (),
    "metrics.py": TRAIN_AND_MEASURE,
    "model/backbone/resnet.py": TRAIN_AND_MEASURE,
    "model/device.py": TRAIN_AND_MEASURE,
    "model/network.py": ("finetune", "evaluate"),
    "planning/rules.py": (),
    "prediction/export.py": (),
    "prediction/output_folder.py": (),
    "prediction/image_folder.py": (),
    "prediction/image/windows.py": ("finetune", "evaluate"),
    "prediction/submission.py": (),
    "printable.py": (),
    "raw/layouts/voc.py": ("prepare",),
    "raw/masks.py": ("prepare",),
    "registry/gate.py": (),
    "selfsup/jigsaw.py": ("pretrain",),
    "semisup/pseudo_labels.py": ("finetune",),
    "serving/service.py": (),
    "stages/finetune.py": ("finetune",),
    "study/training.py": (),
    "tracking/journal.py": (),
    "training/finetune.py": ("finetune",),
    "training/launch.py": ("finetune",),
    "training/pretrain.py": ("pretrain", "finetune"),
    "training/shared/optimizer.py": ("pretrain", "finetune"),
}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy") / "pspnet"
    return Path(shutil.copytree(code.PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__")))


@pytest.mark.parametrize("name", RUN_AGAIN)
def test_an_edit_reruns_every_stage_whose_results_it_can_change(
    package: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code, "PACKAGE", package)
    before = {stage: code_digest(parts) for stage, parts in CODE.items()}
    text = (package / name).read_text(encoding="utf-8")
    (package / name).write_text(f"{text}\n", encoding="utf-8")
    after = {stage: code_digest(parts) for stage, parts in CODE.items()}
    (package / name).write_text(text, encoding="utf-8")
    assert tuple(stage for stage in ALL if before[stage] != after[stage]) == RUN_AGAIN[name]


def test_every_room_has_an_edit_here(package: Path) -> None:
    rooms = {path.name for path in package.iterdir() if path.name != "__init__.py"}
    assert rooms == {Path(name).parts[0] for name in RUN_AGAIN}
