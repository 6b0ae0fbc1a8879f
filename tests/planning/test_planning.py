"""A plan for a small prepared set, timed on this machine."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pspnet.config.params import load_params
from pspnet.config.reading import read_yaml
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.planning import device, rules
from pspnet.planning.facts import DataFacts, _left_right_difference
from pspnet.planning.planning import choose
from pspnet.planning.rules import Choice
from pspnet.planning.writing import params_text, with_choices
from tests.parameters import ROOT

START = ROOT / "recipes/start.yaml"
OTHERS = ("dataset", "prepare", "evaluate", "registry", "promotion", "serve")


@pytest.fixture(scope="module")
def choices(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Sequence[Choice]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PSPNET_LOADER_WORKERS", "0")
        for name in ("LADDER", "IMAGES_NEEDED"):  # the larger networks take seconds to time
            patch.setattr(rules, name, getattr(rules, name)[:1])
        patch.setattr(device, "PROBE", replace(device.PROBE, height_px=48, width_px=48, batch_size=2))
        state = tmp_path_factory.mktemp("state")
        chosen = choose(PreparedDataset.open(prepared), read_yaml(START), 1.0, state)
    assert list(state.iterdir()) == [], "the timing left checkpoints"
    return chosen


def test_the_plan_is_a_complete_params_file(choices: Sequence[Choice], tmp_path: Path) -> None:
    before = read_yaml(START)
    (tmp_path / "params.yaml").write_text(params_text(with_choices(before, choices), choices, "A plan."))
    planned = load_params(tmp_path / "params.yaml")
    assert {name: read_yaml(tmp_path / "params.yaml")[name] for name in OTHERS} == {n: before[n] for n in OTHERS}
    assert planned.pretrain.method.kind == "none"
    assert planned.backbone.width <= 0.5
    assert planned.finetune.crop_height_px == 96


def test_each_choice_stands_beside_its_reason(choices: Sequence[Choice]) -> None:
    text = params_text(with_choices(read_yaml(START), choices), choices, "A plan.")
    for choice in choices:
        assert f"# {choice.reason}" in text
    assert max(map(len, text.splitlines())) <= 120


def test_an_old_plan_does_not_change_the_new_one(choices: Sequence[Choice]) -> None:
    once = with_choices(read_yaml(START), choices)
    assert with_choices(once, choices) == once


def test_values_that_yaml_would_misread_are_written_so_that_they_are_read_back(tmp_path: Path) -> None:
    content: dict[str, Any] = {"a": {"yes": "no", "pattern": "^(.*)#\\d", "list": [1.0, 2], "empty": {}, "none": None}}
    (tmp_path / "file.yaml").write_text(params_text(content, [Choice("a.yes", "no", "because")], "Heading"))
    assert read_yaml(tmp_path / "file.yaml") == content


def test_facts_describe_the_streets(prepared: Path) -> None:
    facts = DataFacts.of(PreparedDataset.open(prepared))
    assert (facts.height_px, facts.width_px) == (96, 128)
    assert facts.train_masks + facts.val_images < 28, "test is not counted"
    assert sum(facts.class_shares.values()) == pytest.approx(1)
    assert facts.thickness_px["sky"] > facts.thickness_px["person"]
    assert facts.left_right_differ < 0.5


def test_a_class_on_one_side_makes_the_sides_differ() -> None:
    counts = np.zeros((2, 8, 8))
    counts[0, :, :4] = 1  # the left half
    counts[1] = 1  # everywhere
    assert _left_right_difference(counts) == pytest.approx(0.5)  # 1 and 0
    assert _left_right_difference(counts.transpose(0, 2, 1)) == 0  # the upper half


def test_a_plan_reads_no_test_image(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = PreparedDataset.annotated

    def annotated(self: PreparedDataset, split: Any) -> Any:
        read.append(split)
        return original(self, split)

    monkeypatch.setattr(PreparedDataset, "annotated", annotated)
    DataFacts.of(PreparedDataset.open(prepared))
    assert set(read) == {"train", "val"}
