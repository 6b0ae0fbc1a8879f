"""Inputs that once failed are handled well."""

from pathlib import Path

import pytest

from tests.fuzz import Target, names, target

SEEDS = [(aim, seed) for aim in map(target, names()) for seed in aim.seeds]


@pytest.mark.filterwarnings("ignore")  # warnings from MLflow and Pillow
@pytest.mark.parametrize(("aim", "seed"), SEEDS, ids=[f"{aim.name}-{seed.name}" for aim, seed in SEEDS])
def test_an_input_that_once_failed_is_handled_well(aim: Target, seed: Path, tmp_path: Path) -> None:
    aim.one(seed.read_bytes(), tmp_path)
