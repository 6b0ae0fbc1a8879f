"""Tests planning on a small prepared set, with steps timed on this machine."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pspnet.config.params import Params
from pspnet.config.reading import parse_value, validate
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.planning import device, rules
from pspnet.planning.facts import DataFacts, _left_right_difference
from pspnet.planning.planning import choose, planned
from pspnet.planning.rules import Choice
from tests.parameters import ROOT

START = ROOT / "recipes/start.yaml"
OTHERS = ("dataset", "prepare", "evaluate", "registry", "promotion", "serve")


@pytest.fixture(scope="module")
def choices(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Sequence[Choice]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PSPNET_LOADER_WORKERS", "0")
        for name in ("LADDER", "IMAGES_NEEDED"):  # larger networks would take seconds to time
            patch.setattr(rules, name, getattr(rules, name)[:1])
        patch.setattr(device, "PROBE", replace(device.PROBE, height_px=48, width_px=48, batch_size=2))
        state = tmp_path_factory.mktemp("state")
        chosen = choose(PreparedDataset.open(prepared), START.read_text(encoding="utf-8"), 1.0, state)
    assert list(state.iterdir()) == [], "the timing left checkpoints"
    return chosen


def test_the_plan_is_a_complete_params_file_and_keeps_other_sections_word_for_word(choices: Sequence[Choice]) -> None:
    before = START.read_text(encoding="utf-8")
    after = planned(before, choices)
    params = validate(Params, parse_value(after, "the plan"), "the plan")
    assert params.pretrain.method.kind == "none"
    assert (params.backbone.width, params.finetune.crop_height_px) == (0.25, 96)
    for section in OTHERS:
        assert section_of(after, section) == section_of(before, section)


def section_of(text: str, name: str) -> str:
    found = re.search(rf"^{name}:\n(?:(?: .*)?\n)*", text, re.MULTILINE)
    assert found
    return found[0]


def test_each_choice_has_its_reason_on_its_line(choices: Sequence[Choice]) -> None:
    text = planned(START.read_text(encoding="utf-8"), choices)
    for choice in choices:
        assert f"# {choice.reason}\n" in text
    assert max(map(len, text.splitlines())) <= 120


def test_planning_twice_changes_nothing(choices: Sequence[Choice]) -> None:
    once = planned(START.read_text(encoding="utf-8"), choices)
    assert planned(once, choices) == once


def test_facts_describe_the_streets(prepared: Path) -> None:
    facts = DataFacts.of(PreparedDataset.open(prepared))
    assert (facts.height_px, facts.width_px) == (96, 128)
    assert facts.train_masks + facts.val_images < 28, "test is not counted"
    assert sum(facts.class_shares.values()) == pytest.approx(1)
    assert facts.thickness_px["sky"] > facts.thickness_px["person"]
    assert facts.left_right_differ < 0.5


def test_a_class_on_one_side_makes_the_sides_differ() -> None:
    counts = np.zeros((2, 8, 8))
    counts[0, :, :4] = 1  # class 0 is in the left half
    counts[1] = 1  # class 1 is everywhere
    assert _left_right_difference(counts) == pytest.approx(0.5)  # the mean of 1 and 0
    assert _left_right_difference(counts.transpose(0, 2, 1)) == 0  # now class 0 is in the upper half


def test_a_plan_reads_no_test_images(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = PreparedDataset.annotated

    def annotated(self: PreparedDataset, split: Any) -> Any:
        read.append(split)
        return original(self, split)

    monkeypatch.setattr(PreparedDataset, "annotated", annotated)
    DataFacts.of(PreparedDataset.open(prepared))
    assert set(read) == {"train", "val"}
